"""Duration of a run, and its range, from finished runs on the same class of machines.

A stage takes `fixed + slowness * work` seconds. Its work is what the cost model expects on the
reference machine (`durations.stage_seconds`), in seconds, so that `slowness` is a ratio. A stage
that is short beside its fixed part, or beside the longest one, does not teach the slowness.

The range of a run's duration is that of earlier errors: each finished run has the duration that was
predicted for it before, from the runs before it. The 10 % and 90 % quantiles of measured over
predicted bound the next ratio as in conformal prediction (Vovk, Gammerman and Shafer, Algorithmic
Learning in a Random World, section 2.2), with a stated factor in place of ratios yet to be seen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from intraslice_core.progress import Stage

NEWEST_RUNS = 20
"""Newest runs from which a stage's cost is fitted."""
WIDE_FACTOR, OTHER_METHOD_FACTOR, SEEN_FACTOR = 6.0, 3.0, 2.0
"""Factor between a prediction and either end of its range, as far as past errors do not show it:
before any run on the class of machines, before one of the method, and after one."""
LOW_QUANTILE = 0.1
"""Quantile of past ratios at the lower end of the range; that of the upper end mirrors it."""

_FIXED_SECONDS = 0.5
"""Fixed part of a stage's duration before runs have shown it."""
_FIXED_SECONDS_OF: Mapping[Stage, float] = {Stage.LOAD: 3.5}
"""That of stages that begin with a new process, which imports torch and transformers."""
_OF_THE_METHOD = frozenset({Stage.ALLOCATE, Stage.COMPRESS})
"""Stages whose cost depends on the method."""
_TEACHES_ABOVE_FIXED = 2.0
"""Duration from which a stage teaches the slowness, in fixed parts."""
_LARGEST_SLOWNESS = 20.0
"""Slowness above which a duration is that of a fixed part: no machine is so slow."""
_TEACHES_ABOVE_LARGEST = 0.1
"""Work from which a stage teaches the slowness, as a part of the largest that does."""
_EVIDENCE_JOBS, _EVIDENCE_SPREAD = 3, 3.0
"""Number of teaching jobs, and ratio of their largest and smallest work, from which they alone
decide fixed part and slowness."""
_PRIOR_WEIGHT = 0.1
"""Weight of the expected fixed part and slowness below that, where a job has weight 1."""
_EXTRAPOLATION = 0.2
"""Power by which a range widens with the work beyond the largest that was seen."""
_LEAST_SECONDS = 1e-3
"""Smallest duration that is compared: logarithms need one."""


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A finished run: what the cost model expected of each stage, and what was measured."""

    method: str
    work: Mapping[Stage, float]
    """Seconds of each stage on the reference machine, by the cost model."""
    seconds: Mapping[Stage, float]
    """Measured seconds of each stage."""
    predicted: float | None = None
    """Seconds that were predicted for these stages from the runs before; None for the first."""

    @property
    def ratio(self) -> float | None:
        """Return the measured seconds per predicted second; None without a prediction."""
        measured = sum(self.seconds[stage] for stage in self.stages)
        return measured / self.predicted if self.predicted and measured > 0.0 else None

    @property
    def stages(self) -> frozenset[Stage]:
        """Return the stages with both work and a measured duration."""
        return frozenset(self.work) & frozenset(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expected duration of a run and its range, in seconds."""

    low: float
    expected: float
    high: float
    stages: Mapping[Stage, float]
    """Expected seconds of each stage."""


@dataclass(frozen=True, kw_only=True)
class LinearCost:
    """Duration of a stage: a fixed part, and one proportional to its work."""

    fixed: float
    """Seconds."""
    slowness: float
    """Seconds per second of the reference machine."""

    def seconds(self, work: float) -> float:
        """Return the duration of a stage with this work."""
        return self.fixed + self.slowness * work

    def error(self, time: StageTime) -> float:
        """Return the absolute logarithm of the predicted over the measured duration."""
        return _log_ratio(self.seconds(time.work), time.seconds)


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Work and measured duration of a stage in one run, both in seconds."""

    work: float
    seconds: float


def predict_duration(
    runs: Sequence[PastRun],
    method: str,
    work: Mapping[Stage, float],
    limits: Mapping[Stage, float] | None = None,
) -> Prediction:
    """Predict the duration of a run and its range.

    Args:
        runs: finished runs on the class of machines, newest first; may be empty.
        method: method of the run.
        work: seconds of each stage on the reference machine, by the cost model.
        limits: longest seconds of the stages that a clock ends.
    """
    typical = _typical_slowness(runs)
    longest = limits or {}
    stages = {
        stage: min(
            _stage_cost(runs, method, stage, typical).seconds(amount),
            longest.get(stage, math.inf),
        )
        for stage, amount in work.items()
        if amount > 0.0
    }
    expected = sum(stages.values())
    low, high = _range(runs, method, sum(work.values()))
    return Prediction(low=expected * low, expected=expected, high=expected * high, stages=stages)


def _stage_cost(runs: Sequence[PastRun], method: str, stage: Stage, slowness: float) -> LinearCost:
    """Return the cost of a stage, from runs of the method where it decides and some have shown it.

    Args:
        runs: newest first.
        method: method of the run.
        stage: the stage.
        slowness: typical one of the class of machines.
    """
    fixed = _FIXED_SECONDS_OF.get(stage, _FIXED_SECONDS)
    own = _times((run for run in runs if run.method == method), stage)
    if stage in _OF_THE_METHOD and teaching_times(own, fixed):
        return fit_cost(own, fixed, slowness)
    return fit_cost(_times(runs, stage), fixed, slowness)


def _times(runs: Iterable[PastRun], stage: Stage) -> list[StageTime]:
    """Return the work and duration of a stage in the newest runs that had it."""
    times = [
        StageTime(work=run.work[stage], seconds=run.seconds[stage])
        for run in runs
        if stage in run.stages and run.work[stage] > 0.0
    ]
    return times[:NEWEST_RUNS]


def _typical_slowness(runs: Sequence[PastRun]) -> float:
    """Return the median slowness of all stages that teach one; 1 without any."""
    ratios = []
    for stage in Stage:
        fixed = _FIXED_SECONDS_OF.get(stage, _FIXED_SECONDS)
        times = teaching_times(_times(runs, stage), fixed)
        ratios += [(time.seconds - fixed) / time.work for time in times]
    return statistics.median(ratios) if ratios else 1.0


# -- cost of a stage ---------------------------------------------------------------------------


def teaching_times(times: Sequence[StageTime], fixed: float) -> list[StageTime]:
    """Return the durations that teach the slowness: the work is not short beside the fixed part.

    Args:
        times: of one stage.
        fixed: expected fixed part of its duration, in seconds.
    """
    long = [
        time
        for time in times
        if time.seconds >= _TEACHES_ABOVE_FIXED * fixed
        and time.seconds <= _LARGEST_SLOWNESS * time.work
    ]
    largest = max((time.work for time in long), default=0.0)
    return [time for time in long if time.work >= _TEACHES_ABOVE_LARGEST * largest]


def fit_cost(times: Sequence[StageTime], fixed: float, slowness: float) -> LinearCost:
    """Fit the fixed part and the slowness of a stage.

    The line has the least sum of absolute logarithmic errors, so that a run that was disturbed
    changes little. Few teaching runs, or those of about the same work, cannot tell the two parts
    apart; then the expected ones take part with a small weight. The other runs show the fixed part.

    Args:
        times: of one stage.
        fixed: expected fixed part, in seconds.
        slowness: expected slowness.
    """
    teaching = teaching_times(times, fixed)
    short = [time for time in times if time not in teaching]
    prior = LinearCost(fixed=fixed, slowness=slowness)
    cost = _fit_line(teaching, prior) if teaching else prior
    if not short:
        return cost
    rests = (time.seconds - cost.slowness * time.work for time in short)
    return LinearCost(fixed=max(statistics.median(rests), 0.0), slowness=cost.slowness)


def _fit_line(times: Sequence[StageTime], prior: LinearCost) -> LinearCost:
    """Return the line with the least error of all through two durations, or one and the prior."""
    works = [time.work for time in times]
    has_evidence = len(times) >= _EVIDENCE_JOBS and max(works) >= _EVIDENCE_SPREAD * min(works)
    weight = 0.0 if has_evidence else _PRIOR_WEIGHT

    def error(cost: LinearCost) -> float:
        distance = _log_ratio(cost.fixed, prior.fixed) + _log_ratio(cost.slowness, prior.slowness)
        return sum(cost.error(time) for time in times) + weight * distance

    return min(_candidates(times, prior), key=error)


def _candidates(times: Sequence[StageTime], prior: LinearCost) -> list[LinearCost]:
    """Return the lines through two durations or through one and the prior; no part is negative."""
    candidates = []
    for time in times:
        for fixed in (0.0, min(prior.fixed, time.seconds)):
            slowness = (time.seconds - fixed) / time.work
            candidates.append(LinearCost(fixed=fixed, slowness=slowness))
        rest = time.seconds - prior.slowness * time.work
        candidates.append(LinearCost(fixed=max(rest, 0.0), slowness=prior.slowness))
    for first, second in combinations(times, 2):
        if first.work == second.work:
            continue
        slowness = (second.seconds - first.seconds) / (second.work - first.work)
        fixed = first.seconds - slowness * first.work
        if slowness >= 0.0 and fixed >= 0.0:
            candidates.append(LinearCost(fixed=fixed, slowness=slowness))
    return candidates


def _log_ratio(first: float, second: float) -> float:
    """Return the absolute logarithm of the ratio of two numbers that are not negative."""
    return abs(math.log(max(first, _LEAST_SECONDS) / max(second, _LEAST_SECONDS)))


# -- range of a run ----------------------------------------------------------------------------


def _range(runs: Sequence[PastRun], method: str, work: float) -> tuple[float, float]:
    """Return the factors from the expected duration to both ends of its range.

    Args:
        runs: newest first.
        method: method of the run.
        work: of all stages together, in seconds of the reference machine.
    """
    own = [run for run in runs if run.method == method]
    if not own:
        factor = OTHER_METHOD_FACTOR if runs else WIDE_FACTOR
        return 1.0 / factor, factor
    ratios = [run.ratio for run in runs if run.ratio is not None]
    low, high = ratio_range(ratios[:NEWEST_RUNS])
    largest = max(sum(run.work.values()) for run in own)
    beyond = max(work / largest, 1.0) ** _EXTRAPOLATION if largest > 0.0 else 1.0
    return min(low, 1.0) / beyond, max(high, 1.0) * beyond


def ratio_range(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the range of the next ratio of measured and predicted duration.

    With `n` ratios, it lies below the one of rank `q (n + 1)` with probability `q` if all are
    exchangeable. Ranks 0 and `n + 1` are those of `SEEN_FACTOR`, or of a larger error.

    Args:
        ratios: of earlier runs, positive, in any order.
    """
    logs = sorted(math.log(ratio) for ratio in ratios)
    bound = math.log(SEEN_FACTOR)
    padded = [min([-bound, *logs]), *logs, max([bound, *logs])]
    rank = LOW_QUANTILE * (len(logs) + 1)
    return math.exp(_at_rank(padded, rank)), math.exp(_at_rank(padded, len(logs) + 1 - rank))


def _at_rank(values: Sequence[float], rank: float) -> float:
    """Return the value of a rank, from 0; between two ranks, the one in proportion."""
    below = min(int(rank), len(values) - 2)
    part = rank - below
    return values[below] * (1.0 - part) + values[below + 1] * part
