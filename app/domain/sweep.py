"""Sweeps: jobs that compress one model at several ratios and by one or several methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, Self

from app.domain.comparison import TaskQuality, TextQuality, read_tasks, read_texts
from app.domain.job import DEFAULT_PRIORITY, Job
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from app.domain.resource import ApiModel, Page, Resource
from intraslice_core.config import (
    CompressionConfig,
    CompressionSettings,
    EvaluationConfig,
    MethodChoice,
)
from intraslice_core.reports.sweep import SizeCheck, SweepChild, check_sizes, dominates
from intraslice_core.text_sources import Domain

MOST_RATIOS = 20
MOST_JOBS = 40
"""Largest number of jobs of a sweep: methods times ratios."""
FEWEST_COMPARED, MOST_COMPARED = 2, 20
"""Numbers of jobs that `/v1/compare` takes."""


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
    """A sweep to be created: the same compression at several ratios, by several methods."""

    model: ModelSource
    compression: CompressionSettings
    ratios: tuple[float, ...]
    methods: tuple[MethodChoice, ...] = ()
    """Methods to compare; empty stands for the method of `compression`."""
    evaluation: EvaluationConfig | None = None
    labels: dict[str, str] = field(default_factory=dict)
    priority: int = DEFAULT_PRIORITY

    @property
    def children(self) -> tuple[SweepChild, ...]:
        """One child for each job, the ratios of one method after each other."""
        methods = self.methods or (self.compression.method,)
        return tuple(
            SweepChild(method=method, ratio=ratio) for method in methods for ratio in self.ratios
        )

    def compression_of(self, child: SweepChild) -> CompressionConfig:
        """Return the settings of one job."""
        settings = dict(self.compression) | {"method": child.method}
        return CompressionConfig(ratio=child.ratio, **settings)


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
        """Return the paths of a sweep; `compare` needs the ids of 2 to 20 jobs."""
        base = f"/v1/sweeps/{sweep_id}"
        compares = FEWEST_COMPARED <= len(job_ids) <= MOST_COMPARED
        return cls(
            self=base,
            jobs=f"/v1/jobs?sweep={sweep_id}",
            compare=f"/v1/compare?jobs={','.join(job_ids)}" if compares else None,
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
    methods: tuple[MethodChoice, ...]
    """Compared methods; at least that of `compression`."""
    evaluation: EvaluationConfig | None
    labels: dict[str, str]
    progress: SweepProgress
    urls: SweepUrls


class DenseSize(ApiModel):
    """Size and quality of the dense model, as measured by the jobs."""

    params: int
    bytes: int
    quality: dict[str, float]
    """Perplexity by text."""


class ParetoPoint(ApiModel):
    """Size, quality, speed and cost of one job.

    `dominated`: another job is at least as good in bytes, perplexity and, if measured, decode
    speed, and better in one of them; null until the job's perplexity is measured.
    """

    job_id: str
    method: MethodChoice | None = None
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
    quality: tuple[TextQuality, ...] = ()
    """Perplexity on every text, of the dense and the compressed model."""
    tasks: tuple[TaskQuality, ...] = ()
    """Scores in every task; empty where none was requested."""
    seconds: float | None = None
    """Seconds of work on compression and evaluation, without pauses. What jobs share is computed,
    and counts, in the first that needs it."""
    peak_memory_bytes: int | None = None
    """Peak memory of the finishing attempt in bytes."""
    dominated: bool | None


class SweepDetails(Sweep):
    """A sweep with its jobs and their Pareto table, smallest ratio first."""

    jobs: tuple[Job, ...]
    pareto: tuple[ParetoPoint, ...]
    sizes: tuple[SizeCheck, ...] = ()
    """Parameter counts of all methods, for each ratio at which two jobs or more have succeeded."""
    dense: DenseSize | None = None
    """The dense model; null until a job has succeeded."""


class SweepList(Page[Sweep]):
    """One page of sweeps, newest first."""


class Measured(ApiModel):
    """Measurements of one job that its result does not have, from the engine's report."""

    quality: tuple[TextQuality, ...] = ()
    tasks: tuple[TaskQuality, ...] = ()
    seconds: float | None = None
    peak_memory_bytes: int | None = None

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Self:
        """Return the measurements in these fields of a report."""
        return cls(
            quality=read_texts(report["perplexity"] or ()),
            tasks=read_tasks(report["tasks"] or ()),
            seconds=report["seconds"],
            peak_memory_bytes=report["peak_memory_bytes"],
        )


_NOTHING = Measured()


def dense_size(points: Sequence[ParetoPoint], jobs: Sequence[Job]) -> DenseSize | None:
    """Return the dense model as the jobs measured it; None before the first result."""
    result = next((job.result for job in jobs if job.result), None)
    if result is None:
        return None
    quality = {score.text: score.dense for point in points for score in point.quality}
    return DenseSize(params=result.params_before, bytes=result.bytes_before, quality=quality)


def size_checks(points: Sequence[ParetoPoint]) -> tuple[SizeCheck, ...]:
    """Return the comparison of the methods' sizes at every ratio."""
    sizes = ((point.ratio, point.params_after) for point in points)
    return check_sizes((ratio, params) for ratio, params in sizes if ratio is not None)


def pareto_table(
    jobs: Sequence[Job], measured: Mapping[str, Measured] = MappingProxyType({})
) -> tuple[ParetoPoint, ...]:
    """Return every job's point in the same order.

    Args:
        jobs: jobs of the sweep, in order.
        measured: measurements by the id of the job.
    """
    costs = {job.id: _costs(job) for job in jobs}
    compared = [cost for cost in costs.values() if cost is not None]
    return tuple(
        _point(job, costs[job.id], compared, measured.get(job.id, _NOTHING)) for job in jobs
    )


def in_order(jobs: Iterable[Job], methods: Sequence[MethodChoice]) -> list[Job]:
    """Return jobs of a sweep, smallest ratio first, those of a ratio in the order of the methods.

    Ids do not order them: jobs of one request may be of the same millisecond.
    """
    places = {method: place for place, method in enumerate(methods)}

    def place(job: Job) -> tuple[float, int, str]:
        return (job.ratio or 0.0, places.get(job.compression.method, len(places)), job.id)

    return sorted(jobs, key=place)


def _point(
    job: Job,
    costs: tuple[float, ...] | None,
    compared: Sequence[tuple[float, ...]],
    measured: Measured,
) -> ParetoPoint:
    result = job.result
    speedup = result.speedup if result else None
    return ParetoPoint(
        job_id=job.id,
        method=job.compression.method,
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
        quality=measured.quality,
        tasks=measured.tasks,
        seconds=measured.seconds,
        peak_memory_bytes=measured.peak_memory_bytes,
        dominated=None if costs is None else any(dominates(other, costs) for other in compared),
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
