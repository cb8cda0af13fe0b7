"""Windows of a text of any length, written to a file in bounded memory (fine-tuning text)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration.generated_text import generate_tokens
from intraslice_core.calibration.record_tally import RecordTally
from intraslice_core.calibration.sources import Reading, load_text
from intraslice_core.calibration.tokens import (
    OVERSAMPLING,
    ModelSource,
    document_tokens,
    require_variety,
    too_short,
)
from intraslice_core.calibration.windows import text_prefix
from intraslice_core.config import CalibrationConfig, CalibrationPart
from intraslice_core.errors import CalibrationSourceError
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled
from intraslice_core.text_sources import WEB, WRITTEN

SHUFFLED_TOKENS = 2**23
"""Tokens of all sources that are shuffled in memory at once, 32 MiB."""
_WRITTEN_TOKENS = 2**20
"""Tokens that the model writes with one seed."""
_SEED_STEP = 7919
"""Distance of the seeds of successive written batches; a prime, so that few seeds coincide."""
_ROWS_PER_CHECK = 256
_COMPARED_TOKENS = 2**16
"""Tokens of a text whose variety is judged."""

Window = NDArray[np.int32]
_WindowsOf = Callable[[CalibrationPart], Iterator[Window]]


def stream_windows(
    config: CalibrationConfig,
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    *,
    model: ModelSource | None = None,
    should_cancel: CancellationCheck = never_cancelled,
    warnings: list[str] | None = None,
) -> Tensor:
    """Write full windows of a text to a file and map the file; memory does not grow with the text.

    The windows are those of `calibration_tokens`: they begin with the tokenizer's prefix, are
    chosen from up to eight times as much text, and the sources are interleaved. Of a text too long
    for `SHUFFLED_TOKENS`, all windows are used as they are read, shuffled through a buffer.

    Args:
        config: sources, number and length of the windows, and seed.
        tokenizer: tokenizer of the model.
        file: written; it must stay as long as the result is used.
        model: generates the text of `self` and `chat`; a function is called only for these.
        should_cancel: checked every few windows.
        warnings: extended by warnings about records that were skipped.

    Returns:
        (samples, sequence_length), int32, mapped from the file.

    Raises:
        CalibrationSourceError: if a source cannot be read, or no model is given to generate it.
        CalibrationTooShortError: if a source contains too few tokens.
        CalibrationUniformError: if the texts repeat a few tokens only.
        CompressionCancelledError: if the run is to stop.
    """
    generator = _loaded_once(model)
    parts = config.parts()
    capacity = max(1, SHUFFLED_TOKENS // (config.sequence_length * len(parts)))
    texts = {
        part.source: _Text(part, tokenizer, capacity, [] if warnings is None else warnings)
        for part in parts
        if part.source not in WRITTEN
    }

    def windows_of(part: CalibrationPart) -> Iterator[Window]:
        if part.source in texts:
            return iter(texts[part.source])
        return _written(part, generator, tokenizer, should_cancel)

    with file.open("wb") as stream:
        for row, window in enumerate(_interleaved(parts, windows_of)):
            if row % _ROWS_PER_CHECK == 0:
                raise_if_cancelled(should_cancel)
            stream.write(window.tobytes())
    size = config.samples * config.sequence_length
    tokens = torch.from_file(str(file), shared=False, size=size, dtype=torch.int32)
    tokens = tokens.view(config.samples, config.sequence_length)
    first = tokens[: max(1, _COMPARED_TOKENS // config.sequence_length)].long()
    require_variety(first, {source: text.first_windows() for source, text in texts.items()})
    return tokens


def _loaded_once(model: ModelSource | None) -> ModelSource:
    @cache
    def load() -> PreTrainedModel:
        if model is None:
            raise CalibrationSourceError(
                "`self` and `chat` need the model that generates the text",
                field="calibration.source",
            )
        return model if isinstance(model, PreTrainedModel) else model()

    return load


def _interleaved(parts: Iterable[CalibrationPart], windows_of: _WindowsOf) -> Iterator[Window]:
    """Yield the windows of all parts as `sources.interleave` orders them.

    Texts come first in the list of iterators, because each is read before its first window, and
    may be too short: the model writes nothing before. Web text may be out of reach.
    """

    def placed(index: int, part: CalibrationPart) -> Iterator[tuple[float, int, Window]]:
        for row, window in enumerate(windows_of(part)):
            yield (2 * row + 1) / (2 * part.samples), index, window

    def read_order(entry: tuple[int, CalibrationPart]) -> tuple[bool, bool]:
        return entry[1].source in WRITTEN, entry[1].source != WEB

    numbered = sorted(enumerate(parts), key=read_order)
    for _, _, window in heapq.merge(*(placed(index, part) for index, part in numbered)):
        yield window


class _Text:
    """Windows of one source that is read, in random order."""

    def __init__(
        self,
        part: CalibrationPart,
        tokenizer: PreTrainedTokenizerBase,
        capacity: int,
        warnings: list[str],
    ) -> None:
        self._part, self._tokenizer, self._warnings = part, tokenizer, warnings
        self._capacity = min(capacity, OVERSAMPLING * part.samples)
        self._wanted = min(OVERSAMPLING * part.samples, max(part.samples, capacity))
        self._prefix = np.array(text_prefix(tokenizer), dtype=np.int32)
        self._tokens = self._windows = 0
        self._first: list[Window] = []

    def first_windows(self) -> Tensor:
        """Return the first windows of the text, (n, sequence_length), int64."""
        return torch.from_numpy(np.stack(self._first)).long()

    def __iter__(self) -> Iterator[Window]:
        """Yield the part's windows in random order.

        Raises:
            CalibrationTooShortError: if there are not enough.
            CalibrationSourceError: if the source cannot be read, or too many records are bad.
        """
        generator = np.random.default_rng(self._part.seed)
        buffer = np.empty((self._capacity, self._part.sequence_length), dtype=np.int32)
        held = yielded = 0
        for window in self._read():
            if held < self._capacity:
                buffer[held] = window
                held += 1
                continue
            place = int(generator.integers(held))
            yield buffer[place].copy()
            yielded += 1
            buffer[place] = window
        rest = self._part.samples - yielded
        if held < rest:
            raise too_short(self._part, self._tokens, self._windows, len(self._prefix))
        for place in generator.permutation(held)[:rest]:
            yield buffer[place].copy()

    def _read(self) -> Iterator[Window]:
        """Yield the wanted windows in the order of the text; count bad records."""
        part = self._part
        tally = RecordTally(source=part.source)
        reading = Reading(part="calibration", text_field=part.text_field, template=self._tokenizer)
        pieces = load_text(part.source, reading, tally)
        most = self._wanted * part.sequence_length
        tokens = document_tokens(pieces, self._tokenizer, most)
        for window in islice(self._cut(tokens), self._wanted):
            if len(self._first) * part.sequence_length < _COMPARED_TOKENS:
                self._first.append(window)
            self._windows += 1
            yield window
        tally.settle(pieces)
        self._warnings += tally.warnings()

    def _cut(self, batches: Iterable[list[int]]) -> Iterator[Window]:
        step = self._part.sequence_length - len(self._prefix)
        rest = np.empty(0, dtype=np.int32)
        for batch in batches:
            self._tokens += len(batch)
            rest = np.concatenate((rest, np.array(batch, dtype=np.int32)))
            end = len(rest) // step * step
            for start in range(0, end, step):
                yield np.concatenate((self._prefix, rest[start : start + step]))
            rest = rest[end:]


def _written(
    part: CalibrationPart,
    model: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    should_cancel: CancellationCheck,
) -> Iterator[Window]:
    """Yield windows that the model writes, in batches with seeds of their own."""
    at_once = max(1, _WRITTEN_TOKENS // part.sequence_length)
    loaded = model if isinstance(model, PreTrainedModel) else model()
    for number, start in enumerate(range(0, part.samples, at_once)):
        batch = part.model_copy(
            update={
                "samples": min(at_once, part.samples - start),
                "seed": (part.seed + number * _SEED_STEP) % 2**31,
            }
        )
        tokens = generate_tokens(loaded, tokenizer, batch, should_cancel=should_cancel)
        yield from tokens.to(torch.int32).numpy()
