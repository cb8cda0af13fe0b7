"""Progress of a model that writes text: tokens, and the remaining time by the pace of the steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from intraslice_core import writing
from intraslice_core.substeps import report_substep

_LEAST_STEPS = 64
"""Timed steps before the remaining time is estimated."""
_REPORT_SECONDS = 0.5
"""Shortest pause between two reports."""


@dataclass(frozen=True, kw_only=True)
class WritingProgress:
    """Written tokens, and the seconds that the others will take."""

    tokens: int
    total: int
    seconds_left: float | None
    """None until enough steps have been timed."""

    @property
    def counts(self) -> str:
        """Written and all tokens as text."""
        return f"{self.tokens:,}/{self.total:,} tokens"


WritingListener = Callable[[WritingProgress], None]


def report_writing(progress: WritingProgress) -> None:
    """Report the written tokens as a sub-step of the run in progress (default listener)."""
    report_substep(f"writing text: {progress.counts}")


class WritingPace:
    """Durations of the steps, as a line over the number of cached tokens that each one reads.

    A step multiplies the weights by the new tokens and reads all cached keys and values, so that
    late steps of long sequences take longer than early ones.

    Args:
        lengths: tokens of all sequences.
        listener: receives the progress, at most twice a second.
        clock: time in seconds.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        listener: WritingListener,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._total, self._listener, self._clock = sum(lengths), listener, clock
        self._left: list[list[int]] = []
        self._planned = self._written = self._position = 0
        self._last = self._reported = clock()
        self._steps: list[tuple[int, float]] = []

    def plan(self, batches: Sequence[Sequence[int]]) -> None:
        """Set the batches that are not written yet, by the lengths of their sequences."""
        self._left = [writing.cached_tokens(lengths) for lengths in batches]
        self._planned = sum(sum(lengths) for lengths in batches)
        self._written = self._position = 0
        self._last = self._clock()

    def step(self, position: int, rows: int, read: int) -> None:
        """Count a step that wrote a token of every row, and report.

        Args:
            position: of the tokens.
            rows: sequences that are not finished.
            read: tokens of each of them that the model has read in the step: one that was sampled,
                or several that were dictated.
        """
        now = self._clock()
        first = self._written == 0  # also the first use of every kernel
        if read == 1 and not first:
            self._steps.append((rows * position, now - self._last))
        self._written += rows * (position + 1 - self._position)
        self._position, self._last = position + 1, now
        if not first and now - self._reported < _REPORT_SECONDS:
            return
        self._reported = now
        self._listener(
            WritingProgress(
                tokens=self._total - self._planned + self._written,
                total=self._total,
                seconds_left=self._seconds_left(position + 1),
            )
        )

    def _seconds_left(self, position: int) -> float | None:
        """Return the seconds from a position of the current batch on; None if not known yet."""
        if len(self._steps) < _LEAST_STEPS:
            return None
        reads, seconds = np.array(self._steps).T
        spread = reads - reads.mean()
        slope = max(float(spread @ seconds) / max(float(spread @ spread), 1.0), 0.0)
        base = max(float(seconds.mean()) - slope * float(reads.mean()), 0.0)
        left = [*self._left[0][position:], *(read for batch in self._left[1:] for read in batch)]
        return base * len(left) + slope * sum(left)
