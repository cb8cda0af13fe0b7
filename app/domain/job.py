"""A job and what is written about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from app.domain.lease import Lease
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from intraslice_core.config import CompressionConfig, EvaluationConfig, FrozenModel
from intraslice_core.progress import LayerDone, Stage

DEFAULT_PRIORITY = 5
HIGHEST_PRIORITY = 9


class Progress(FrozenModel):
    """How far a running job is; `fraction` is of the whole job, in [0, 1]."""

    fraction: float
    message: str
    layer: int | None = None
    layers: int | None = None
    eta_seconds: float | None = None
    finished: LayerDone | None = None


class Speedup(FrozenModel):
    """Tokens/s, compressed over dense."""

    prefill: float
    decode: float


class JobResult(FrozenModel):
    """The outcome in a few numbers; the report has the rest."""

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    speedup: Speedup | None = None
    achieved_ratio: float | None = None
    """Fraction of the compressible parameters that is gone."""


class JobError(FrozenModel):
    """Why a job failed."""

    code: str
    message: str
    stage: Stage | None = None
    layer: int | None = None
    module: str | None = None
    field: str | None = None
    hint: str | None = None
    retryable: bool = False


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What somebody asks for."""

    model: ModelSource
    compression: CompressionConfig
    evaluation: EvaluationConfig | None = None
    labels: dict[str, str] = field(default_factory=dict)
    sweep_id: str | None = None
    priority: int = DEFAULT_PRIORITY
    max_runtime_s: int | None = None
    max_pending_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs of a project are wanted; what is empty does not restrict."""

    before: str | None = None
    """An id: only jobs made before that one."""
    states: frozenset[State] = frozenset()
    model: str | None = None
    """`ref` of the model."""
    sweep_id: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    """All of them."""
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the database knows it."""

    id: str
    project_id: str
    sweep_id: str | None
    state: State
    stage: Stage | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    model: ModelSource
    compression: CompressionConfig
    evaluation: EvaluationConfig | None
    labels: dict[str, str]
    progress: Progress | None
    result: JobResult | None
    error: JobError | None
    priority: int
    """Of queued jobs the highest number is taken first."""
    max_runtime_s: int | None
    """Of one attempt."""
    max_pending_s: int | None
    """From the moment it is queued to its start."""
    attempt: int
    max_attempts: int
    fencing_token: int
    lease_owner: str | None
    traceparent: str | None
    """Of the request that made it, for the worker's spans."""
    pinned: bool
    expires_at: datetime | None
    """When its artifacts will be removed."""
    expired_at: datetime | None
    """When they were."""

    @property
    def ratio(self) -> float | None:
        """Fraction removed: as asked for, or as achieved where a size was asked for."""
        if self.compression.ratio is not None:
            return self.compression.ratio
        return self.result.achieved_ratio if self.result else None

    @property
    def lease(self) -> Lease:
        """The claim of whoever works on it."""
        if self.lease_owner is None:
            raise ValueError(f"nobody works on {self.id}")
        return Lease(job_id=self.id, owner=self.lease_owner, token=self.fencing_token)
