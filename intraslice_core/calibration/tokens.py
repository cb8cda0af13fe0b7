"""From documents to windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration.own_text import write_own_tokens
from intraslice_core.calibration.sources import interleave, load_text
from intraslice_core.config import CalibrationConfig, CalibrationPart
from intraslice_core.errors import CalibrationSourceError, CalibrationTooShortError
from intraslice_core.progress import CancellationCheck, never_cancelled
from intraslice_core.text_sources import WRITTEN

ModelSource = PreTrainedModel | Callable[[], PreTrainedModel]
"""A model, or how to get one where only `self` and `chat` need it."""

_PIECE_CHARACTERS = 32_768
_PIECES_AT_ONCE = 64
_OVERSAMPLING = 8
"""Tokens read before reading stops, as a multiple of those asked for."""


def calibration_tokens(
    config: CalibrationConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: ModelSource | None = None,
    should_cancel: CancellationCheck = never_cancelled,
) -> Tensor:
    """Sequences of every source: windows chosen by a seeded permutation, or the model's own text.

    Those of a mixture are interleaved, so that any beginning and any end holds all sources in
    proportion.

    Args:
        config: sources, number and length of the sequences, seed.
        tokenizer: the model's.
        model: what writes the text of `self` and `chat`; a callable is only then called.
        should_cancel: asked while the model writes.

    Returns:
        (samples, sequence_length), int64, on the CPU.

    Raises:
        CalibrationSourceError: if a source cannot be read, or there is no model to write it.
        CalibrationTooShortError: if a source holds too few tokens.
    """

    @cache
    def writer() -> PreTrainedModel:
        if model is None:
            raise CalibrationSourceError(
                "`self` and `chat` need the model that writes the text", field="calibration.source"
            )
        return model if isinstance(model, PreTrainedModel) else model()

    parts = config.parts()
    # What can be read is read first: it may be too short, and writing takes its time.
    read = {part.source: _read(part, tokenizer) for part in parts if part.source not in WRITTEN}
    written = {
        part.source: write_own_tokens(writer(), tokenizer, part, should_cancel=should_cancel)
        for part in parts
        if part.source in WRITTEN
    }
    return interleave([(read | written)[part.source] for part in parts])


def _read(part: CalibrationPart, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Windows of a text, (samples, sequence_length)."""
    documents = load_text(part.source, part="calibration")
    tokens = tokenise_documents(documents, tokenizer, max_tokens=_OVERSAMPLING * part.tokens)
    return _choose_windows(tokens, part)


def calibration_hash(tokens: Tensor) -> str:
    """SHA-256 of shape and content; equal for equal int64 tokens on any device."""
    digest = hashlib.sha256(repr(tuple(tokens.shape)).encode())
    digest.update(tokens.detach().cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenise_documents(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Tensor:
    """The documents one after the other, each between the tokenizer's own special tokens.

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
    """`samples` of the non-overlapping windows of (n,) tokens."""
    length, samples = config.sequence_length, config.samples
    windows = len(tokens) // length
    if windows < samples:
        raise CalibrationTooShortError(
            f"{config.source} holds {len(tokens)} tokens, "
            f"{samples} sequences of {length} need {samples * length}",
            field="calibration.samples",
            hint=f"at most {windows} sequences of this length fit: ask for fewer or shorter "
            "sequences, give more text, or weigh it less in a mixture",
        )
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(windows, generator=generator)[:samples]
    return tokens[: windows * length].view(windows, length)[order].contiguous()


def _tokenised(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Iterator[list[int]]]:
    """Per document its pieces' token ids; pieces keep a batch call fast and memory flat."""
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
    """Token ids of one long document, piece by piece."""
    pieces = list(_pieces(document))
    for start in range(0, len(pieces), _PIECES_AT_ONCE):
        yield from _ids(pieces[start : start + _PIECES_AT_ONCE], tokenizer)


def _pieces(document: str) -> Iterator[str]:
    """The document in pieces that end where a line ends, so no word is cut."""
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
    """Token ids without special tokens."""
    if not texts:
        return []
    encoded: Any = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return list(encoded["input_ids"])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    probe = "a"
    bare: list[int] = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer(probe, add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
