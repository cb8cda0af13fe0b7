"""The model writes its own text: freely, or in conversations."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from intraslice_core.calibration.conversations import Conversations, conversation_layout
from intraslice_core.calibration.python_text import Part
from intraslice_core.calibration.sources import FIELDS
from intraslice_core.config import CalibrationPart
from intraslice_core.errors import CalibrationSourceError
from intraslice_core.progress import CancellationCheck, raise_if_cancelled
from intraslice_core.text_sources import WRITING_CACHE_BYTES

TEMPERATURE = 1.0
TOP_K = 50
_MOST_ROWS = 128
"""Sequences at once; more are hardly faster."""
_HELD_OUT_SEEDS = 2**31
"""No calibration has a seed from here on."""


class Prompter(Protocol):
    """What the model does not choose itself."""

    def opening(self) -> Sequence[int]:
        """The tokens that a sequence begins with, at least one."""

    def after(self, token: int) -> Sequence[int]:
        """The tokens that must follow one that the model chose, often none."""


class _Silent:
    """Gives a first token and says nothing more."""

    def __init__(self, first: int) -> None:
        self._first = first

    def opening(self) -> Sequence[int]:
        return (self._first,)

    def after(self, token: int) -> Sequence[int]:
        del token
        return ()


class _RoomyLayer(DynamicLayer):
    """Keys and values in room for all tokens; the base class copies everything at each token."""

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._length = length
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (batch, heads, new, width) after what is there; all that is there."""
        del args, kwargs
        if self._room is None:
            self.lazy_initialization(key_states, value_states)
            self._room = self._make(key_states), self._make(value_states)
            begin = 0
        else:
            begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        keys, values = self._room
        keys[:, :, begin:end] = key_states
        values[:, :, begin:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def _make(self, states: Tensor) -> Tensor:
        batch, heads, _, width = states.shape
        return states.new_empty(batch, heads, self._length, width)


@torch.inference_mode()
def write_own_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: CalibrationPart,
    *,
    part: Part = "calibration",
    should_cancel: CancellationCheck,
) -> Tensor:
    """Sample sequences from the model, each from its first token on.

    Bitwise repeatable on a CPU. An end-of-text token does not stop a sequence: what comes after it
    is the next document, which the model begins (`self`) or a prompt (`chat`). Evaluation has
    other seeds than calibration, and other prompts.

    Returns:
        (samples, sequence_length), int64, on the CPU.

    Raises:
        CalibrationSourceError: if neither tokenizer nor model names a first token (`self`), or
            the chat template cannot be used (`chat`).
    """
    seed = config.seed + (_HELD_OUT_SEEDS if part == "evaluation" else 0)
    prompter: Prompter
    if config.source == "chat":
        prompter = Conversations(conversation_layout(model, tokenizer, part), seed)
    else:
        prompter = _Silent(_first_token(model, tokenizer, part))
    was_training = model.training
    model.train(False)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    try:
        batches = [
            _write(model, rows, config.sequence_length, prompter, generator, should_cancel)
            for rows in _batches(config.samples, _most_rows(model, config.sequence_length))
        ]
    finally:
        model.train(was_training)
    return torch.cat(batches)


def _write(
    model: PreTrainedModel,
    rows: int,
    length: int,
    prompter: Prompter,
    generator: torch.Generator,
    should_cancel: CancellationCheck,
) -> Tensor:
    """(rows, length), one token of every row at a time, chosen by the model or by the prompter."""
    given = [deque(prompter.opening()) for _ in range(rows)]
    begin = min(length, *map(len, given))
    tokens = [torch.tensor([[line.popleft() for _ in range(begin)] for line in given])]
    cache = _roomy_cache(model, length)
    for _ in range(begin, length):
        raise_if_cancelled(should_cancel)
        output: Any = model(
            input_ids=tokens[-1].to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = _sample(output.logits[:, -1], generator).tolist()
        lines = zip(given, chosen, strict=True)
        tokens.append(torch.tensor([[_next(line, token, prompter)] for line, token in lines]))
    return torch.cat(tokens, dim=1)


def _next(given: deque[int], chosen: int, prompter: Prompter) -> int:
    """What is given goes before what the model has chosen."""
    if given:
        return given.popleft()
    given.extend(prompter.after(chosen))
    return chosen


def _sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row of (batch, vocabulary), among the `TOP_K` likeliest; (batch,)."""
    values, indices = logits.float().topk(min(TOP_K, logits.shape[-1]), dim=-1)
    chances = torch.softmax(values / TEMPERATURE, dim=-1)
    return indices.gather(-1, torch.multinomial(chances, 1, generator=generator)).flatten()


def _roomy_cache(model: PreTrainedModel, length: int) -> DynamicCache:
    """The model's own kind of cache, with room where it keeps every token."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _RoomyLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def _most_rows(model: PreTrainedModel, length: int) -> int:
    """Sequences whose keys and values fit into `WRITING_CACHE_BYTES`, found with one token."""
    cache = DynamicCache(config=model.config)
    first = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model(input_ids=first, past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    one = sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in layers)
    return min(max(WRITING_CACHE_BYTES // (one * length), 1), _MOST_ROWS)


def _batches(samples: int, most: int) -> Iterator[int]:
    """Sizes of as few batches as can be, as equal as can be."""
    count = -(-samples // most)
    for index in range(count):
        yield samples // count + (index < samples % count)


def _first_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Part) -> int:
    """Where a text begins: the tokenizer's BOS, the model's, or a document's end."""
    for candidate in (tokenizer.bos_token_id, model.config.bos_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    raise CalibrationSourceError(
        "`self` needs a first token, but neither tokenizer nor model names one",
        field=FIELDS[part],
        hint="use another source",
    )
