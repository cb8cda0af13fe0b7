"""Steps of a training of masks, bounded by tokens or time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from intraslice_core.config import MaskTrainingConfig


@dataclass(kw_only=True)
class MaskProgress:
    """Progress of a training of masks."""

    step: int = 0
    tokens: int = 0
    """Tokens that were trained on."""
    seconds: float = 0.0

    def facts(self) -> dict[str, str]:
        """Return the numbers by name, as text."""
        numbers = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        return {name: repr(number) for name, number in numbers.items()}

    def is_finished(self, length: int, config: MaskTrainingConfig) -> bool:
        """Return whether a further sequence exceeds the tokens, or the time is over.

        The first step is always taken.
        """
        limit = config.max_seconds
        over = self.tokens + length > config.max_tokens
        return self.step > 0 and (over or (limit is not None and self.seconds >= limit))

    def fraction(self, config: MaskTrainingConfig) -> float:
        """Return the finished fraction of the nearer bound, at most 1."""
        by_tokens = self.tokens / config.max_tokens
        by_time = 0.0 if config.max_seconds is None else self.seconds / config.max_seconds
        return min(max(by_tokens, by_time), 1.0)


def train_masks(
    tokens: Tensor,
    config: MaskTrainingConfig,
    progress: MaskProgress,
    *,
    take: Callable[[Tensor], None],
    before_step: Callable[[], None],
) -> None:
    """Take steps until a bound is reached.

    Args:
        tokens: calibration, (samples, length), int64; a step takes one sequence.
        config: bounds.
        progress: of an interrupted training, or that before the first step; changed in place.
        take: takes a step on a batch, (1, length), and counts it in `progress.step`.
        before_step: callback, which may save the state or raise to stop.
    """
    length = tokens.shape[1]
    while not progress.is_finished(length, config):
        before_step()
        started = time.perf_counter()
        take(tokens[progress.step % len(tokens)].unsqueeze(0))
        progress.tokens += length
        progress.seconds += time.perf_counter() - started
