"""Progress events of a run, and cancellation."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate, pairwise

from intraslice_core.config import FrozenModel
from intraslice_core.errors import CompressionCancelledError


class Stage(StrEnum):
    """Stages of a job, in order."""

    LOAD = "load"
    TOURNAMENT = "tournament"
    CALIBRATE = "calibrate"
    ALLOCATE = "allocate"
    COMPRESS = "compress"
    RECOVER = "recover"
    VERIFY = "verify"
    EVALUATE = "evaluate"
    EXPORT = "export"
    PUBLISH = "publish"


Shares = Mapping[Stage, tuple[float, float]]
"""Begin and end of each stage, as fractions of a run."""

_DEFAULT_SECONDS: Mapping[Stage, float] = {
    Stage.LOAD: 2.0,
    Stage.CALIBRATE: 4.0,
    Stage.ALLOCATE: 24.0,
    Stage.COMPRESS: 45.0,
    Stage.VERIFY: 5.0,
    Stage.EVALUATE: 19.0,
    Stage.EXPORT: 1.0,
}
"""Seconds of the stages where nothing is known about the model, without fine-tuning."""
_FINETUNING_SECONDS = 186.0
"""Seconds of recovery fine-tuning beside `_DEFAULT_SECONDS`: about two thirds of a run."""


def stage_shares(seconds: Mapping[Stage, float]) -> Shares:
    """Return the share of each stage in a run, in proportion to its expected seconds.

    A stage without expected seconds has an empty share, at its place in the order.
    """
    finished = [0.0, *accumulate(seconds.get(stage, 0.0) for stage in Stage)]
    bounds = [end / finished[-1] for end in finished]
    return dict(zip(Stage, pairwise(bounds), strict=True))


def shares_of(*, recover: bool) -> Shares:
    """Return typical stage shares, for runs whose work is not estimated."""
    finetuning = {Stage.RECOVER: _FINETUNING_SECONDS} if recover else {}
    return stage_shares({**_DEFAULT_SECONDS, **finetuning})


LONGEST_PAUSE_SECONDS = 3.0
"""Pause after which the last event is repeated: one factorisation may take a minute."""
_BEAT_SECONDS = 1.0


@contextmanager
def heartbeat(beat: Callable[[], None]) -> Iterator[None]:
    """Call a function every second from another thread, until the block ends or it raises."""
    ended = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):  # a failing listener also fails the next step
            while not ended.wait(_BEAT_SECONDS):
                beat()

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class StageTimer:
    """Durations of a run's stages, measured from one stage's beginning to the next."""

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._since = 0.0
        self._seconds: dict[Stage, float] = {}

    def enter(self, stage: Stage, now: float) -> None:
        """End the current stage and begin another, unless it is the same."""
        if stage is not self._stage:
            self._seconds = self.seconds_until(now)
            self._stage, self._since = stage, now

    def seconds_until(self, now: float) -> dict[Stage, float]:
        """Return the seconds of every stage, those of the current one until `now`."""
        seconds = dict(self._seconds)
        if self._stage is not None:
            seconds[self._stage] = seconds.get(self._stage, 0.0) + now - self._since
        return seconds


_UNCERTAINTY, _EARLY_UNCERTAINTY = 0.3, 1.0
"""Uncertainty of a whole run's time, relative to it; and before a fifth of a run on a machine that
has no earlier one."""
_EARLY_FRACTION = 0.2


def remaining_range(left: float, total: float, *, is_early: bool = False) -> tuple[float, float]:
    """Return the range of a remaining time, which most runs keep to.

    The uncertainty of what is left shrinks with the square root of its share, as that of a sum of
    parts with errors of their own.

    Args:
        left: estimate of the remaining time.
        total: estimate of the whole time.
        is_early: the run has neither shown its pace nor an earlier run on the same machine.
    """
    uncertainty = _EARLY_UNCERTAINTY if is_early else _UNCERTAINTY
    if left <= 0.0:
        return 0.0, 0.0
    factor = 1.0 + uncertainty * math.sqrt(max(total, left) / left)
    return left / factor, left * factor


class RemainingTime:
    """Estimate of a run's remaining time from its finished fraction and the time it has taken.

    Fractions are shares of the expected time (`stage_shares`), so they grow evenly. The rest of the
    current stage follows the stage's own pace as soon as that is known, later stages follow the
    pace of the whole run. What a resumed run restores, and stages that a cache answers, take almost
    no time. They say nothing about the rest and are left out of the pace. While the fraction stands
    still, the estimate counts down.

    Args:
        started: time at which the run started, in seconds of any clock.
        expected: expected seconds of the whole run from earlier ones; None if it has none.
    """

    def __init__(self, started: float, expected: float | None = None) -> None:
        self.expected = expected
        self._started = started
        self._skipped = 0.0
        self._stage: Stage | None = None
        self._entered = _Moment(0.0, started)
        self._last = _Moment(-1.0, started)
        self._left: tuple[float, float] | None = None

    def skip(self, fraction: float) -> None:
        """Leave a fraction of the run, which was restored, out of the pace."""
        self._skipped += fraction
        self._entered = replace(self._entered, fraction=self._entered.fraction + fraction)

    def estimate(
        self,
        stage: Stage,
        fraction: float,
        now: float,
        *,
        end: float,
        seconds_left: float | None = None,
    ) -> float | None:
        """Return the remaining seconds of the run; None while too little is finished.

        Args:
            stage: current stage.
            fraction: finished fraction of the run.
            now: time of the same clock as `started`.
            end: fraction of the run at the end of the stage.
            seconds_left: remaining seconds of the stage, if the stage knows them.
        """
        if stage is not self._stage:
            self._leave(fraction, now)
            self._stage, self._entered = stage, _Moment(fraction, now)
        if seconds_left is not None:
            done, elapsed = end - self._skipped, now - self._started + seconds_left
            self._last = _Moment(fraction, now)
            self._left = seconds_left, elapsed * (1.0 - end) / max(done, _LEAST_FRACTION)
        elif fraction > self._last.fraction:
            self._last = _Moment(fraction, now)
            self._left = self._left_after(fraction, now, end)
        if self._left is None:
            return None
        stage_left, later = self._left
        return max(stage_left + later - (now - self._last.seconds), later)

    def bounds(self, left: float, now: float) -> tuple[float, float]:
        """Return the range of an estimate of the remaining seconds, which most runs keep to.

        Args:
            left: estimate of now.
            now: time of the same clock as `started`.
        """
        is_early = self.expected is None and self._last.fraction < _EARLY_FRACTION
        return remaining_range(left, now - self._started + left, is_early=is_early)

    def _left_after(self, fraction: float, now: float, end: float) -> tuple[float, float] | None:
        """Return the remaining seconds of the current stage and of all later ones."""
        pace = self._pace(fraction, now)
        if pace is None:
            return None
        begin = self._entered
        weight = _OWN_PACE_AFTER * (end - begin.fraction)
        done = fraction - begin.fraction
        own = (now - begin.seconds + weight * pace) / (done + weight) if weight > 0.0 else pace
        return own * (end - fraction), pace * (1.0 - end)

    def _pace(self, fraction: float, now: float) -> float | None:
        """Return the run's seconds per unit of fraction; None while they are not known."""
        done, elapsed = fraction - self._skipped, now - self._started
        if self.expected is not None:
            return (elapsed + _EXPECTED_WEIGHT * self.expected) / (done + _EXPECTED_WEIGHT)
        return elapsed / done if done > _LEAST_FRACTION else None

    def _leave(self, fraction: float, now: float) -> None:
        """Skip the stage that ends if it took much less than its share of the time so far."""
        begin = self._entered
        pace, share = self._pace(begin.fraction, begin.seconds), fraction - begin.fraction
        if pace is None or share <= _LEAST_FRACTION:
            return
        if now - begin.seconds < _SKIPPED_BELOW * share * pace:
            self._skipped += share


@dataclass(frozen=True)
class _Moment:
    """Finished fraction of a run at a time in seconds."""

    fraction: float
    seconds: float


_LEAST_FRACTION = 0.02
"""Finished fraction below which the remaining time is not estimated."""
_EXPECTED_WEIGHT = 0.2
"""Fraction of a run by which the expectation from earlier runs is weighted."""
_OWN_PACE_AFTER = 0.5
"""Finished fraction of a stage at which its own pace and the run's have the same weight."""
_SKIPPED_BELOW = 0.05
"""Fraction of a stage's expected time below which its result must come from a cache."""


class LayerDone(FrozenModel):
    """Shape of a finished layer and the relative errors of its compensation."""

    layer: int
    num_attention_heads: int
    num_key_value_heads: int
    qk_head_dim: int
    v_head_dim: int
    intermediate_size: int
    attention_part: float
    """Kept fraction of the dense heads' widths."""
    mlp_part: float
    """Kept fraction of the dense MLP's width."""
    attention_error: float | None = None
    mlp_error: float | None = None
    explained_energy: float | None = None


class ProgressEvent(FrozenModel):
    """Progress of a run; `fraction` of the whole run is in [0, 1], `layer` counts from 0."""

    stage: Stage
    message: str
    fraction: float
    layer: int | None = None
    layers: int | None = None
    eta_seconds: float | None = None
    """Remaining seconds; None while they are not known."""
    eta_seconds_low: float | None = None
    eta_seconds_high: float | None = None
    """Ends of their range, which most runs keep to."""
    memory_bytes: int | None = None
    """Resident memory of the run's processes; only the service's workers measure it."""
    gpu_memory_bytes: int | None = None
    """Memory that torch has reserved on the GPU, for runs on a single one."""
    finished: LayerDone | None = None


ProgressListener = Callable[[ProgressEvent], None]
CancellationCheck = Callable[[], bool]


def ignore_progress(event: ProgressEvent) -> None:
    """Ignore a progress event (default listener)."""


def never_cancelled() -> bool:
    """Return False: the run is never cancelled (default check)."""
    return False


def raise_if_cancelled(should_cancel: CancellationCheck) -> None:
    """Raise if cancellation was requested.

    Raises:
        CompressionCancelledError: if `should_cancel` returns True.
    """
    if should_cancel():
        raise CompressionCancelledError("the compression was cancelled")
