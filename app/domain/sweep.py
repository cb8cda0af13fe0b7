"""One model, one calibration, many ratios: what is known of a sweep from its jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from app.domain.job import DEFAULT_PRIORITY, Job
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from intraslice_core.config import CompressionConfig, CompressionSettings, EvaluationConfig


class SweepState(StrEnum):
    """Follows from the states of the jobs; nothing of it is stored."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EMPTY = "empty"
    """All jobs were deleted."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What somebody asks for: the same compression at several ratios."""

    model: ModelSource
    compression: CompressionSettings
    ratios: tuple[float, ...]
    evaluation: EvaluationConfig | None = None
    labels: dict[str, str] = field(default_factory=dict)
    priority: int = DEFAULT_PRIORITY

    def compression_at(self, ratio: float) -> CompressionConfig:
        return CompressionConfig(ratio=ratio, **dict(self.compression))


@dataclass(frozen=True, kw_only=True)
class SweepProgress:
    """How far all jobs of a sweep are together; `fraction` is in [0, 1]."""

    states: dict[State, int]
    fraction: float

    @property
    def state(self) -> SweepState:
        """Anything unfinished keeps a sweep going; of the ends, the worst names it."""
        found = self.states.keys()
        if not found:
            return SweepState.EMPTY
        if found == {State.QUEUED}:
            return SweepState.QUEUED
        if found - TERMINAL:
            return SweepState.RUNNING
        for state in (State.FAILED, State.CANCELLED):
            if state in found:
                return SweepState(state)
        return SweepState.SUCCEEDED

    @classmethod
    def of(cls, jobs: Iterable[tuple[State, float | None]]) -> SweepProgress:
        """From each job's state and its fraction, if it has told one."""
        states: dict[State, int] = {}
        done = 0.0
        for state, fraction in jobs:
            states[state] = states.get(state, 0) + 1
            done += 1.0 if state in TERMINAL else fraction or 0.0
        return cls(states=states, fraction=done / (sum(states.values()) or 1))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as the database knows it."""

    id: str
    project_id: str
    created_at: datetime
    model: ModelSource
    compression: CompressionSettings
    ratios: tuple[float, ...]
    evaluation: EvaluationConfig | None
    labels: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """One job of a sweep in the plane of size, quality and speed."""

    job_id: str
    ratio: float | None
    """As asked for; where a size was, as achieved."""
    state: State
    achieved_ratio: float | None = None
    params_after: int | None = None
    bytes_after: int | None = None
    perplexity: float | None = None
    """Of the first text, as the job's result has it."""
    decode_speedup: float | None = None
    prefill_speedup: float | None = None
    dominated: bool | None = None
    """Whether another point is nowhere worse and somewhere better; None if that is unknown."""


def pareto_table(jobs: Sequence[Job]) -> list[ParetoPoint]:
    """Every job's point, smallest ratio first."""
    costs = {job.id: _costs(job) for job in jobs}
    known = [cost for cost in costs.values() if cost is not None]
    return [_point(job, costs[job.id], known) for job in sorted(jobs, key=smallest_ratio_first)]


def smallest_ratio_first(job: Job) -> tuple[float, str]:
    """To sort by."""
    return (job.ratio or 0.0, job.id)


def _point(
    job: Job, costs: tuple[float, ...] | None, known: Sequence[tuple[float, ...]]
) -> ParetoPoint:
    dominated = None if costs is None else any(_dominates(other, costs) for other in known)
    point = ParetoPoint(job_id=job.id, ratio=job.ratio, state=job.state, dominated=dominated)
    if job.result is None:
        return point
    speedup = job.result.speedup
    return replace(
        point,
        achieved_ratio=job.result.achieved_ratio,
        params_after=job.result.params_after,
        bytes_after=job.result.bytes_after,
        perplexity=job.result.perplexity_after,
        decode_speedup=speedup.decode if speedup else None,
        prefill_speedup=speedup.prefill if speedup else None,
    )


def _costs(job: Job) -> tuple[float, ...] | None:
    """What is to be small: bytes, perplexity and, where it was measured, decoding's slowness.

    None without quality: a smaller file alone is no reason to prefer it.
    """
    result = job.result
    if result is None or result.perplexity_after is None:
        return None
    slowness = () if result.speedup is None else (-result.speedup.decode,)
    return (float(result.bytes_after), result.perplexity_after, *slowness)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Nowhere worse and somewhere better, in what both have measured."""
    pairs = list(zip(one, other, strict=False))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
