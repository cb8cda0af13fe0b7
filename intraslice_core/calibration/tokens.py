"""Tokenisation of documents and selection of the calibration windows."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration.generated_text import WrittenText, generate_texts
from intraslice_core.calibration.pieces import Piece
from intraslice_core.calibration.python_text import Part
from intraslice_core.calibration.record_tally import RecordTally
from intraslice_core.calibration.sources import Reading, interleave, load_text
from intraslice_core.calibration.windows import full_windows, special_tokens, text_prefix
from intraslice_core.calibration.writing_pace import WritingListener, report_writing
from intraslice_core.config import CalibrationConfig, CalibrationPart
from intraslice_core.errors import (
    CalibrationSourceError,
    CalibrationTooShortError,
    CalibrationUniformError,
    NumericalError,
)
from intraslice_core.progress import CancellationCheck, never_cancelled
from intraslice_core.ranks import ALONE, MAIN, Ranks
from intraslice_core.substeps import report_substep
from intraslice_core.text_sources import WEB, WRITTEN

ModelSource = PreTrainedModel | Callable[[], PreTrainedModel]
"""Model, or a function that loads it, called only for `self` and `chat`."""

ReadTokens = Callable[[list[str]], Tensor]
"""Function that reads sequences of tokens, and extends the given list by warnings."""

_PIECES_AT_ONCE = 64
_CHARACTERS_AT_ONCE = 2**19
_CHARACTERS_PER_TOKEN = 8
"""Generous number of characters of a token, so that few tokens take one batch."""
OVERSAMPLING = 8
"""Tokens read before reading stops, as a multiple of the requested number."""
_RUN_LENGTH = 8
_ENOUGH_TOKENS = 2**14
"""Tokens that are compared first; those of any ordinary text are of enough variety."""
_HASH_FACTOR = 6364136223846793005  # of Knuth's MMIX generator
_HASHED_ROWS = 1024
_LEAST_RUNS = 32
"""Different runs of `_RUN_LENGTH` tokens below which a text is too uniform for any model."""


def calibration_tokens(
    config: CalibrationConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: ModelSource | None = None,
    should_cancel: CancellationCheck = never_cancelled,
    on_writing: WritingListener = report_writing,
    warnings: list[str] | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the calibration sequences: windows of texts chosen at random, or generated text.

    All begin with the tokenizer's prefix (`windows.text_prefix`), which counts as a part of them.
    The sources of a mixture are interleaved, so that any first and any last sequences contain all
    of them in proportion.

    Args:
        config: sources, number and length of the sequences, and seed.
        tokenizer: tokenizer of the model.
        model: generates the text of `self` and `chat`; a function is called only for these.
        should_cancel: checked while the model generates.
        on_writing: receives the number of tokens that the model has written.
        warnings: extended by warnings about records that were skipped.
        ranks: those that write text together. The main one calls this, the others call
            `write_with_main` for every `TextToWrite` that they receive meanwhile.

    Returns:
        (samples, sequence_length), int64, on the CPU.

    Raises:
        CalibrationSourceError: if a source cannot be read, or no model is given to generate it.
        CalibrationTooShortError: if a source contains too few tokens.
        CalibrationUniformError: if the texts repeat a few tokens only.
    """
    parts = config.parts()
    # Texts are read first: they may be too short, and generation takes long. Web text may be out of
    # reach.
    read = {
        part.source: read_windows(part, tokenizer, warnings)
        for part in sorted(parts, key=lambda part: part.source != WEB)
        if part.source not in WRITTEN
    }
    try:
        generated = _write(
            [part for part in parts if part.source in WRITTEN],
            tokenizer,
            model,
            should_cancel,
            on_writing,
            ranks,
        )
    except (CalibrationSourceError, NumericalError) as error:
        if not config.self_share:
            raise
        if warnings is not None:
            warnings.append(f"the calibration has no self-written text: {error.message}")
        return calibration_tokens(
            config.model_copy(update={"self_share": 0.0}),
            tokenizer,
            model=model,
            should_cancel=should_cancel,
            on_writing=on_writing,
            warnings=warnings,
            ranks=ranks,
        )
    sequences = [(read | generated)[part.source] for part in parts]
    # The model's own text has variety, whatever was given.
    given = sequences[: len(config.sources)] if config.self_share else sequences
    require_variety(interleave(given), read)
    return interleave(sequences)


def _write(
    parts: Sequence[CalibrationPart],
    tokenizer: PreTrainedTokenizerBase,
    model: ModelSource | None,
    should_cancel: CancellationCheck,
    on_writing: WritingListener,
    ranks: Ranks,
) -> dict[str, Tensor]:
    """Let the model write the sequences of all parts together; return them by source.

    Raises:
        CalibrationSourceError: if no model is given, or it cannot write a source.
    """
    if not parts:
        return {}
    if model is None:
        raise CalibrationSourceError(
            "`self` and `chat` need the model that generates the text",
            field="calibration.source",
        )
    texts = ranks.computed(MAIN, lambda: TextToWrite(parts=tuple(parts))).texts
    written = generate_texts(
        model if isinstance(model, PreTrainedModel) else model(),
        tokenizer,
        texts,
        should_cancel=should_cancel,
        on_progress=on_writing,
        ranks=ranks,
    )
    return {part.source: rows for part, rows in zip(parts, written, strict=True)}


@dataclass(frozen=True, kw_only=True)
class TextToWrite:
    """Message of the main rank: text that all ranks write together."""

    parts: tuple[CalibrationPart, ...]

    @property
    def texts(self) -> list[WrittenText]:
        """Return the texts, in the order of the parts."""
        return [WrittenText(order=part) for part in self.parts]


def write_with_main(
    text: TextToWrite,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks,
    *,
    should_cancel: CancellationCheck,
) -> None:
    """Write this rank's share of a text that the main rank needs.

    A text that cannot be written is an error of the main rank, which decides what follows.
    """
    with suppress(CalibrationSourceError, NumericalError):
        generate_texts(model, tokenizer, text.texts, should_cancel=should_cancel, ranks=ranks)


def sequence_sources(config: CalibrationConfig) -> Tensor:
    """Return the number of the source that each calibration sequence is from, (samples,), int64."""
    parts = config.parts()
    return interleave([torch.full((part.samples, 1), n) for n, part in enumerate(parts)])[:, 0]


def sequence_groups(config: CalibrationConfig) -> Tensor | None:
    """Return the group of sources, 0 or 1, of each calibration sequence, (samples,), int64.

    Dampings chosen by one group and fitted on the other are tested on text of another kind. None
    for a single source.
    """
    groups = config.source_groups()
    return None if groups is None else torch.tensor(groups)[sequence_sources(config)]


def source_tokens(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    part: Part,
    max_tokens: int,
    text_field: str | None = None,
    warnings: list[str] | None = None,
) -> Tensor:
    """Return the first tokens of a text, reading no further than they need.

    Args:
        source: name of a source that is not written by a model.
        tokenizer: tokenizer of the model; its chat template renders chats.
        part: calibration or held-out part of the source.
        max_tokens: largest number of tokens.
        text_field: field of a record that holds the text; None looks for the known ones.
        warnings: extended by warnings about records that were skipped.

    Returns:
        (n,), int64, with `n <= max_tokens`.

    Raises:
        CalibrationSourceError: if the source cannot be read, or too many of its records are bad.
    """
    tally = RecordTally(source=source)
    reading = Reading(part=part, text_field=text_field, template=tokenizer)
    pieces = load_text(source, reading, tally)
    tokens = tokenise_documents(pieces, tokenizer, max_tokens=max_tokens)
    tally.settle(pieces)
    if warnings is not None:
        warnings += tally.warnings()
    return tokens


def read_windows(
    part: CalibrationPart, tokenizer: PreTrainedTokenizerBase, warnings: list[str] | None
) -> Tensor:
    """Return windows of a text, (samples, sequence_length).

    Raises:
        CalibrationSourceError: if the source cannot be read.
        CalibrationTooShortError: if it has too few tokens.
    """
    tokens = source_tokens(
        part.source,
        tokenizer,
        part="calibration",
        max_tokens=OVERSAMPLING * part.tokens,
        text_field=part.text_field,
        warnings=warnings,
    )
    return _choose_windows(tokens, text_prefix(tokenizer), part)


def require_variety(tokens: Tensor, texts: Mapping[str, Tensor]) -> None:
    """Raise if the sequences repeat so much that their statistics have almost no rank.

    A hidden state depends on the tokens up to its own. The rank of all second moments is therefore
    bounded by the number of different contexts, which the number of different runs of tokens
    estimates: 1 for a repeated token.

    Raises:
        CalibrationUniformError: naming the text with the least variety.
    """
    enough = min(_LEAST_RUNS, tokens.numel() // 4)
    some = tokens[: -(-_ENOUGH_TOKENS // tokens.shape[1])]
    if not texts or distinct_runs(some) >= enough or distinct_runs(tokens) >= enough:
        return
    source = min(texts, key=lambda name: distinct_runs(texts[name]))
    raise CalibrationUniformError(
        f"{source} is too uniform: its {texts[source].numel()} tokens consist of only "
        f"{distinct_runs(texts[source])} different runs of {_RUN_LENGTH} tokens",
        field="calibration.source",
        hint="use text with more variety, like what the model is for",
    )


def distinct_runs(tokens: Tensor) -> int:
    """Return the number of different runs of `_RUN_LENGTH` tokens in (samples, length).

    Runs are told apart by a hash of 64 bits, so that the memory is that of the tokens.
    """
    runs = tokens.shape[1] - _RUN_LENGTH + 1
    hashes = torch.zeros(len(tokens), runs, dtype=torch.int64)
    for offset in range(_RUN_LENGTH):
        # Products and sums wrap around.
        hashes = hashes * _HASH_FACTOR + tokens[:, offset : offset + runs]
    return len(torch.unique(hashes))


def calibration_hash(tokens: Tensor) -> str:
    """Return the SHA-256 of shape and content; equal for equal int64 tokens on any device."""
    digest = hashlib.sha256(repr(tuple(tokens.shape)).encode())
    # Part by part, because a mapped file may be larger than the memory.
    for rows in torch.split(tokens.detach(), _HASHED_ROWS):
        digest.update(rows.cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenise_documents(
    pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Tensor:
    """Tokenise documents in sequence, without the prefix that begins every window.

    Special tokens that the tokenizer puts after a text follow each document. No more pieces are
    taken than `max_tokens` need, apart from those of the last batch.

    Returns:
        (n,), int64, with `n <= max_tokens`.
    """
    # An array needs 8 bytes per token, a list 36.
    collected = array("q")
    for tokens in document_tokens(pieces, tokenizer, max_tokens):
        collected.extend(tokens)
        if len(collected) >= max_tokens:
            break
    return torch.from_numpy(np.array(collected[:max_tokens], dtype=np.int64))


def document_tokens(
    pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> Iterator[list[int]]:
    """Yield the tokens of documents, without the prefix, in batches of at most 64 pieces.

    Args:
        pieces: of documents; none is taken before its batch is used.
        tokenizer: tokenizer of the model.
        max_tokens: number of tokens that are used at most, so that a small number takes few pieces.
    """
    characters = min(_CHARACTERS_AT_ONCE, _CHARACTERS_PER_TOKEN * max_tokens)
    prefix, after = special_tokens(tokenizer)
    for batch in _batches(pieces, characters):
        report_substep("tokenizing")
        ids = _ids([piece.text for piece in batch], tokenizer)
        collected: list[int] = []
        for piece, tokens in zip(batch, ids, strict=True):
            # Rendered chats contain the prefix as text.
            collected += _without(tokens, prefix) if prefix else tokens
            if piece.ends:
                collected += after
        yield collected


def _without(tokens: list[int], excluded: Sequence[int]) -> list[int]:
    return [token for token in tokens if token not in excluded]


def _choose_windows(tokens: Tensor, prefix: Sequence[int], config: CalibrationPart) -> Tensor:
    """Return `samples` random non-overlapping windows of (n,) tokens, each after the prefix."""
    length, samples = config.sequence_length, config.samples
    all_windows = full_windows(tokens, prefix, length)
    windows = len(all_windows)
    if windows < samples:
        raise too_short(config, len(tokens), windows, len(prefix))
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(windows, generator=generator)[:samples]
    return all_windows[order].contiguous()


def too_short(
    part: CalibrationPart, tokens: int, windows: int, prefix: int
) -> CalibrationTooShortError:
    """Return the error about a text of some tokens, which make fewer windows than requested."""
    length, samples = part.sequence_length, part.samples
    return CalibrationTooShortError(
        f"{part.source} contains {tokens} tokens, "
        f"but {samples} sequences of {length} need {samples * (length - prefix)}",
        field="calibration.samples",
        hint=f"at most {windows} sequences of this length fit: request fewer or shorter "
        "sequences, give more text, or lower its weight in a mixture",
    )


def _batches(pieces: Iterable[Piece], most_characters: int) -> Iterator[list[Piece]]:
    """Yield pieces in batches, which keep tokenisation fast and its memory small."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if len(batch) == _PIECES_AT_ONCE or characters >= most_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return token ids without special tokens."""
    if not texts:
        return []
    encoded: Any = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return list(encoded["input_ids"])
