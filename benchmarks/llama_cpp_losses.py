"""Losses of a GGUF file in llama.cpp, for every token of given windows.

`xllamacpp` exports llama.cpp's C interface but its Python classes give only the most likely tokens.
The structures of model and context settings differ between versions. They are therefore filled by
llama.cpp's own defaults and passed on as a whole: each is the last argument of its function, so a
larger one on the stack does no harm.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class _Settings(ctypes.Structure):
    """Settings of a model or a context, larger than those of any version."""

    _fields_ = (("words", ctypes.c_uint32 * 256),)


class _Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_CONTEXT_WORDS = 3
"""Leading words of the context settings: n_ctx, n_batch and n_ubatch."""


def _library() -> Any:
    """Return llama.cpp with the signatures that are used here."""
    import xllamacpp  # type: ignore[import-untyped]

    (path,) = Path(xllamacpp.__file__).parent.glob("*.so")
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_log_set", None, [_LOG, pointer]),
        ("llama_backend_init", None, []),
        ("llama_model_default_params", _Settings, []),
        ("llama_context_default_params", _Settings, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Settings]),
        ("llama_init_from_model", pointer, [pointer, _Settings]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", number, [pointer]),
        ("llama_batch_init", _Batch, [number, number, number]),
        ("llama_batch_free", None, [_Batch]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_decode", number, [pointer, _Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@contextmanager
def _context(library: Any, file: Path, length: int) -> Iterator[tuple[Any, Any]]:
    """Load a model and yield it with a context of `length` positions."""
    silent = _LOG(lambda *_: None)
    library.llama_log_set(silent, None)
    library.llama_backend_init()
    model = library.llama_model_load_from_file(
        str(file).encode(), library.llama_model_default_params()
    )
    if not model:
        raise ValueError(f"llama.cpp cannot load {file}")
    settings = library.llama_context_default_params()
    for word in range(_CONTEXT_WORDS):
        settings.words[word] = length
    context = library.llama_init_from_model(model, settings)
    try:
        yield model, context
    finally:
        library.llama_free(context)
        library.llama_model_free(model)
        library.llama_log_set(_LOG(), None)


def window_losses(file: Path, windows: Tensor) -> Tensor:
    """Return the loss in nats of every token of every window except the first.

    Args:
        file: the GGUF file.
        windows: token ids, (windows, length), int64; the first token gives context only.

    Returns:
        (windows, length - 1), float32.

    Raises:
        ValueError: if llama.cpp cannot load the file or compute a window.
    """
    library = _library()
    length = windows.shape[1]
    with _context(library, file, length) as (model, context):
        vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        batch = library.llama_batch_init(length, 0, 1)
        try:
            return torch.stack(
                [_losses(library, context, batch, window, vocabulary) for window in windows]
            )
        finally:
            library.llama_batch_free(batch)


def _losses(library: Any, context: Any, batch: Any, window: Tensor, vocabulary: int) -> Tensor:
    """Return the losses of one window, (length - 1,)."""
    library.llama_memory_clear(library.llama_get_memory(context), True)
    batch.n_tokens = len(window)
    for position, token in enumerate(window.tolist()):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = 1
    status = library.llama_decode(context, batch)
    if status != 0:
        raise ValueError(f"llama.cpp cannot compute the window: llama_decode returned {status}")
    logits = library.llama_get_logits(context)
    rows = torch.from_numpy(np.ctypeslib.as_array(logits, (len(window), vocabulary)))
    return F.cross_entropy(rows[:-1], window[1:], reduction="none")
