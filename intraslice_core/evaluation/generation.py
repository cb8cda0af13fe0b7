"""Continuation of one prompt by one model, with the time that loading and generating take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object
from intraslice_core.context_length import context_of
from intraslice_core.device_memory import out_of_memory_reported
from intraslice_core.errors import ConfigurationError
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.tokenizer import embedding_rows, load_tokenizer, require_known_tokens

_PROMPT, _LENGTH = "prompt", "max_new_tokens"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Length of a continuation, and how its tokens are selected."""

    max_new_tokens: int
    temperature: float | None = None
    """Temperature of sampling from the whole distribution; None takes the most likely token."""
    seed: int = 0
    """Seed of sampling; without effect on greedy decoding."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Continuation of a prompt by a model."""

    text: str
    prompt_tokens: int
    new_tokens: int
    stopped: bool
    """True if the model ended the text itself, False at `max_new_tokens`."""
    seconds: float
    """Time of generating, the prompt's processing included."""
    load_seconds: float
    """Time of loading the model and its tokenizer."""


def continue_prompt(
    directory: Path, prompt: str, decoding: Decoding, *, dtype: str, device: str
) -> Continuation:
    """Load a checkpoint, dense or compressed, and continue a prompt.

    Args:
        directory: the checkpoint.
        prompt: text to continue.
        decoding: length and selection of tokens.
        dtype: compute dtype, as in the settings of a compression.
        device: compute device, as in the settings of a compression.

    Raises:
        ModelError: if the checkpoint or its tokenizer cannot be loaded.
        ConfigurationError: if the prompt has no tokens, or exceeds the model's context together
            with its continuation.
        OutOfDeviceMemoryError: if the device has too little memory.
    """
    started = time.perf_counter()
    tokenizer = load_tokenizer(directory)
    inputs = _encode(directory, tokenizer, prompt, decoding.max_new_tokens)
    with out_of_memory_reported("dtype"):
        model = load_model(directory, dtype=dtype, device=device)
    require_known_tokens(inputs["input_ids"], embedding_rows(model), tokenizer, "the prompt")
    loaded = time.perf_counter()
    ends = _end_tokens(model)
    with out_of_memory_reported(_LENGTH):
        new_tokens = _generate(model, inputs, decoding, ends)
    ended = time.perf_counter()
    return Continuation(
        text=str(tokenizer.decode(new_tokens, skip_special_tokens=True)),
        prompt_tokens=inputs["input_ids"].shape[1],
        new_tokens=len(new_tokens),
        stopped=len(new_tokens) < decoding.max_new_tokens or new_tokens[-1] in ends,
        seconds=ended - loaded,
        load_seconds=loaded - started,
    )


def _encode(
    directory: Path, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int
) -> dict[str, Tensor]:
    """Return token ids and attention mask of the prompt, each (1, tokens) and int64."""
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    tokens = encoded["input_ids"].shape[1]
    if tokens == 0:
        raise ConfigurationError(
            "the tokenizer makes no token of it", field=_PROMPT, hint="write more"
        )
    context = context_of(read_json_object(directory / CONFIG_FILE))
    if context is not None and tokens + max_new_tokens > context:
        raise ConfigurationError(
            f"a prompt of {tokens:,} tokens and {max_new_tokens:,} new ones exceed the model's "
            f"context of {context:,} tokens",
            field=_LENGTH if tokens < context else _PROMPT,
            hint=f"shorten the prompt or lower {_LENGTH}",
        )
    return dict(encoded)


def _generate(
    model: PreTrainedModel, inputs: dict[str, Tensor], decoding: Decoding, ends: list[int]
) -> list[int]:
    """Return the new tokens.

    Of the checkpoint's own settings only the ends of a text count: penalties and beams would differ
    from what the caller asked for.
    """
    settings: dict[str, Any] = {
        "max_new_tokens": decoding.max_new_tokens,
        "eos_token_id": ends or None,
        "pad_token_id": ends[0] if ends else None,
    }
    if decoding.temperature is not None:
        torch.manual_seed(decoding.seed)
        settings |= {"do_sample": True, "temperature": decoding.temperature}
        settings |= {"top_k": 0, "top_p": 1.0}
    make_config: Any = GenerationConfig
    # Instead of an argument, which the checkpoint's settings would complete.
    model.generation_config = make_config(**settings)
    generate: Any = model.generate
    on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with torch.inference_mode():
        output = generate(**on_device)
    tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def _end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the tokens that end a text of the model; none if the checkpoint names none."""
    settings: Any = model.generation_config
    ends = settings.eos_token_id
    if ends is None:
        return []
    return [*ends] if isinstance(ends, list) else [ends]
