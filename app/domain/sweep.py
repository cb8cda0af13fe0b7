"""Sweeps: jobs that compress one model with the same settings at several ratios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, Self

from app.domain.job import DEFAULT_PRIORITY, Job
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from app.domain.resource import ApiModel, Page, Resource
from intraslice_core.config import CompressionConfig, CompressionSettings, EvaluationConfig
from intraslice_core.text_sources import Domain


class SweepState(StrEnum):
    """State of a sweep, computed from those of its jobs."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EMPTY = "empty"
    """All jobs were deleted."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """A sweep to be created: the same compression at several ratios."""

    model: ModelSource
    compression: CompressionSettings
    ratios: tuple[float, ...]
    evaluation: EvaluationConfig | None = None
    labels: dict[str, str] = field(default_factory=dict)
    priority: int = DEFAULT_PRIORITY

    def compression_at(self, ratio: float) -> CompressionConfig:
        return CompressionConfig(ratio=ratio, **dict(self.compression))


class SweepProgress(ApiModel):
    """Progress of all jobs together; `fraction` is in [0, 1]."""

    fraction: float
    jobs: dict[State, int]
    """Number of jobs by state."""

    @property
    def state(self) -> SweepState:
        """State of the sweep: running until all jobs have ended, then the worst of their ends."""
        states = self.jobs.keys()
        if not states:
            return SweepState.EMPTY
        if states == {State.QUEUED}:
            return SweepState.QUEUED
        if states - TERMINAL:
            return SweepState.RUNNING
        for state in (State.FAILED, State.CANCELLED):
            if state in states:
                return SweepState(state)
        return SweepState.SUCCEEDED

    @classmethod
    def of(cls, jobs: Iterable[tuple[State, float | None]]) -> Self:
        """Return the progress of jobs, given each one's state and fraction, if it has any."""
        states: dict[State, int] = {}
        done = 0.0
        for state, fraction in jobs:
            states[state] = states.get(state, 0) + 1
            done += 1.0 if state in TERMINAL else fraction or 0.0
        return cls(jobs=states, fraction=done / (sum(states.values()) or 1))


class SweepUrls(ApiModel):
    """Paths of the sweep's other resources."""

    self: str
    jobs: str
    compare: str | None
    cancel: str

    @classmethod
    def of(cls, sweep_id: str, job_ids: Sequence[str] = ()) -> Self:
        """Return the paths of a sweep; `compare` needs the ids of two jobs or more."""
        base = f"/v1/sweeps/{sweep_id}"
        return cls(
            self=base,
            jobs=f"/v1/jobs?sweep={sweep_id}",
            compare=f"/v1/compare?jobs={','.join(job_ids)}" if len(job_ids) > 1 else None,
            cancel=f"{base}/cancel",
        )


class Sweep(Resource):
    """A sweep; its state is computed from those of its jobs."""

    object: Literal["sweep"] = "sweep"
    state: SweepState
    created_at: datetime
    model: ModelSource
    compression: CompressionSettings
    ratios: tuple[float, ...]
    evaluation: EvaluationConfig | None
    labels: dict[str, str]
    progress: SweepProgress
    urls: SweepUrls


class ParetoPoint(ApiModel):
    """Size, quality and speed of one job.

    `dominated`: another job is at least as good in bytes, perplexity and, if measured, decode
    speed, and better in one of them; null until the job's perplexity is measured.
    """

    job_id: str
    ratio: float | None
    """The requested ratio, or the achieved one of a job with a target size."""
    achieved_ratio: float | None
    state: State
    params_after: int | None
    bytes_after: int | None
    perplexity: float | None
    """Perplexity on the first text, as in the job's result."""
    kl: float | None = None
    """Mean KL(dense ‖ compressed) on that text, in nats per token."""
    top1_agreement: float | None = None
    """Fraction of that text's tokens for which both models' most likely tokens are equal."""
    domain: Domain | None = None
    """Domain of that text, relative to the calibration."""
    decode_speedup: float | None
    prefill_speedup: float | None
    dominated: bool | None


class SweepDetails(Sweep):
    """A sweep with its jobs and their Pareto table, smallest ratio first."""

    jobs: tuple[Job, ...]
    pareto: tuple[ParetoPoint, ...]


class SweepList(Page[Sweep]):
    """One page of sweeps, newest first."""


def pareto_table(jobs: Sequence[Job]) -> tuple[ParetoPoint, ...]:
    """Return every job's point, smallest ratio first."""
    costs = {job.id: _costs(job) for job in jobs}
    measured = [cost for cost in costs.values() if cost is not None]
    return tuple(
        _point(job, costs[job.id], measured) for job in sorted(jobs, key=smallest_ratio_first)
    )


def smallest_ratio_first(job: Job) -> tuple[float, str]:
    """Return the key to sort jobs of a sweep by."""
    return (job.ratio or 0.0, job.id)


def _point(
    job: Job, costs: tuple[float, ...] | None, measured: Sequence[tuple[float, ...]]
) -> ParetoPoint:
    result = job.result
    speedup = result.speedup if result else None
    return ParetoPoint(
        job_id=job.id,
        ratio=job.ratio,
        achieved_ratio=result.achieved_ratio if result else None,
        state=job.state,
        params_after=result.params_after if result else None,
        bytes_after=result.bytes_after if result else None,
        perplexity=result.perplexity_after if result else None,
        kl=result.kl if result else None,
        top1_agreement=result.top1_agreement if result else None,
        domain=result.domain if result else None,
        decode_speedup=speedup.decode if speedup else None,
        prefill_speedup=speedup.prefill if speedup else None,
        dominated=None if costs is None else any(_dominates(other, costs) for other in measured),
    )


def _costs(job: Job) -> tuple[float, ...] | None:
    """Return what to minimise: bytes, perplexity and, if measured, the negative decode speed.

    None without a perplexity: a smaller file alone is no reason to prefer a job.
    """
    result = job.result
    if result is None or result.perplexity_after is None:
        return None
    slowness = () if result.speedup is None else (-result.speedup.decode,)
    return (float(result.bytes_after), result.perplexity_after, *slowness)


def _dominates(costs: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Return whether `costs` are nowhere higher and somewhere lower, in what both have measured."""
    pairs = list(zip(costs, other, strict=False))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
