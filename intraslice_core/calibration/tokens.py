"""Tokenisation of documents and selection of the calibration windows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration.generated_text import generate_tokens
from intraslice_core.calibration.sources import interleave, load_text
from intraslice_core.config import CalibrationConfig, CalibrationPart
from intraslice_core.errors import CalibrationSourceError, CalibrationTooShortError
from intraslice_core.progress import CancellationCheck, never_cancelled
from intraslice_core.text_sources import WRITTEN

ModelSource = PreTrainedModel | Callable[[], PreTrainedModel]
"""Model, or a function that loads it, called only for `self` and `chat`."""

_PIECE_CHARACTERS = 32_768
_PIECES_AT_ONCE = 64
_OVERSAMPLING = 8
"""Tokens read before reading stops, as a multiple of the requested number."""


def calibration_tokens(
    config: CalibrationConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: ModelSource | None = None,
    should_cancel: CancellationCheck = never_cancelled,
) -> Tensor:
    """Return the calibration sequences: windows of texts chosen at random, or generated text.

    The sources of a mixture are interleaved, so that any first and any last sequences contain all
    of them in proportion.

    Args:
        config: sources, number and length of the sequences, and seed.
        tokenizer: tokenizer of the model.
        model: generates the text of `self` and `chat`; a function is called only for these.
        should_cancel: checked while the model generates.

    Returns:
        (samples, sequence_length), int64, on the CPU.

    Raises:
        CalibrationSourceError: if a source cannot be read, or no model is given to generate it.
        CalibrationTooShortError: if a source contains too few tokens.
    """

    @cache
    def generator() -> PreTrainedModel:
        if model is None:
            raise CalibrationSourceError(
                "`self` and `chat` need the model that generates the text",
                field="calibration.source",
            )
        return model if isinstance(model, PreTrainedModel) else model()

    parts = config.parts()
    # Texts are read first: they may be too short, and generation takes long.
    read = {part.source: _read(part, tokenizer) for part in parts if part.source not in WRITTEN}
    generated = {
        part.source: generate_tokens(generator(), tokenizer, part, should_cancel=should_cancel)
        for part in parts
        if part.source in WRITTEN
    }
    return interleave([(read | generated)[part.source] for part in parts])


def _read(part: CalibrationPart, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return windows of a text, (samples, sequence_length)."""
    documents = load_text(part.source, part="calibration")
    tokens = tokenise_documents(documents, tokenizer, max_tokens=_OVERSAMPLING * part.tokens)
    return _choose_windows(tokens, part)


def calibration_hash(tokens: Tensor) -> str:
    """Return the SHA-256 of shape and content; equal for equal int64 tokens on any device."""
    digest = hashlib.sha256(repr(tuple(tokens.shape)).encode())
    digest.update(tokens.detach().cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenise_documents(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Tensor:
    """Tokenise documents in sequence, each with the tokenizer's special tokens.

    Returns:
        (n,), int64, with `n <= max_tokens`.
    """
    before, after = _special_tokens(tokenizer)
    collected: list[int] = []
    for document in _tokenised(documents, tokenizer):
        collected += before
        for piece in document:
            collected += piece
            if len(collected) >= max_tokens:
                return torch.tensor(collected[:max_tokens], dtype=torch.int64)
        collected += after
    return torch.tensor(collected[:max_tokens], dtype=torch.int64)


def _choose_windows(tokens: Tensor, config: CalibrationPart) -> Tensor:
    """Return `samples` random non-overlapping windows of (n,) tokens."""
    length, samples = config.sequence_length, config.samples
    windows = len(tokens) // length
    if windows < samples:
        raise CalibrationTooShortError(
            f"{config.source} contains {len(tokens)} tokens, "
            f"but {samples} sequences of {length} need {samples * length}",
            field="calibration.samples",
            hint=f"at most {windows} sequences of this length fit: request fewer or shorter "
            "sequences, give more text, or lower its weight in a mixture",
        )
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(windows, generator=generator)[:samples]
    return tokens[: windows * length].view(windows, length)[order].contiguous()


def _tokenised(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Iterator[list[int]]]:
    """Yield the token ids of each document in pieces, which keep batches fast and small."""
    short: list[str] = []
    for document in documents:
        if len(document) > _PIECE_CHARACTERS:
            yield from (iter([ids]) for ids in _ids(short, tokenizer))
            short = []
            yield _long_document(document, tokenizer)
            continue
        short.append(document)
        if len(short) == _PIECES_AT_ONCE:
            yield from (iter([ids]) for ids in _ids(short, tokenizer))
            short = []
    yield from (iter([ids]) for ids in _ids(short, tokenizer))


def _long_document(document: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the token ids of one long document, piece by piece."""
    pieces = list(_pieces(document))
    for start in range(0, len(pieces), _PIECES_AT_ONCE):
        yield from _ids(pieces[start : start + _PIECES_AT_ONCE], tokenizer)


def _pieces(document: str) -> Iterator[str]:
    """Yield the document in pieces that end at line ends, so that no word is split."""
    piece: list[str] = []
    size = 0
    for line in document.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= _PIECE_CHARACTERS:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return token ids without special tokens."""
    if not texts:
        return []
    encoded: Any = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return list(encoded["input_ids"])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text."""
    probe = "a"
    bare: list[int] = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer(probe, add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
