"""A job, its progress, its result and the lease of the worker that runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Self

from pydantic import Field

from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.resource import ApiModel, Page, Resource
from app.domain.worker import RequiredMemory, Waiting
from intraslice_core.config import CompressionConfig, EvaluationConfig, FrozenModel
from intraslice_core.progress import LayerDone, Stage
from intraslice_core.text_sources import Domain

DEFAULT_PRIORITY = 5
HIGHEST_PRIORITY = 9
MOST_LABELS = 32
"""Largest number of labels of a job."""
NAME_LABEL = "name"
"""Label that holds the name of a job."""


class Progress(FrozenModel):
    """Progress of a running job; `fraction` refers to the whole job, in [0, 1]."""

    fraction: float
    message: str
    layer: int | None = None
    layers: int | None = None
    eta_seconds: float | None = Field(
        default=None, description="Remaining seconds; null while they cannot be estimated."
    )
    eta_seconds_low: float | None = Field(
        default=None, description="Lower end of their range, which four of five jobs keep to."
    )
    eta_seconds_high: float | None = Field(default=None, description="Upper end of that range.")
    memory_bytes: int | None = Field(
        default=None,
        description="Memory of the host that the job's processes hold now; pages that several "
        "share count in each.",
    )
    gpu_memory_bytes: int | None = Field(
        default=None,
        description="Memory that the job's process has reserved on its GPU; null on a CPU, and on "
        "several GPUs, on which further processes compute.",
    )
    finished: LayerDone | None = None


class Speedup(FrozenModel):
    """Tokens/s, compressed over dense."""

    prefill: float
    decode: float


class JobResult(FrozenModel):
    """Main numbers of the result; the report has all."""

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    kl: float | None = Field(
        default=None,
        description="Mean KL(dense ‖ compressed) on the text of the perplexity, in nats per token.",
    )
    top1_agreement: float | None = Field(
        default=None,
        description="Fraction of that text's tokens for which both models' most likely tokens are "
        "equal.",
    )
    domain: Domain | None = Field(
        default=None, description="Domain of that text, relative to the calibration."
    )
    speedup: Speedup | None = None
    achieved_ratio: float | None = None
    """Fraction of the compressible parameters that is gone."""


class JobError(FrozenModel):
    """Reason why a job failed."""

    code: str
    message: str
    stage: Stage | None = None
    layer: int | None = None
    module: str | None = None
    field: str | None = None
    hint: str | None = None
    retryable: bool = False


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A worker's exclusive right to run a job, with the fencing token of its attempt.

    Every claim raises `token`, so that writes of an earlier claim can be rejected.
    """

    job_id: str
    owner: str
    token: int


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A job to be created."""

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
    """Criteria of a list of jobs; empty ones do not restrict."""

    before: str | None = None
    """Id of a job; only older ones match."""
    states: frozenset[State] = frozenset()
    model: str | None = None
    """The model's `ref`."""
    sweep_id: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    """Labels that a job must all have."""
    created_after: datetime | None = None
    created_before: datetime | None = None


class JobUrls(ApiModel):
    """Paths of the job's other resources."""

    self: str
    events: str
    report: str
    artifacts: str
    cancel: str
    pause: str
    resume: str
    retry: str

    @classmethod
    def of(cls, job_id: str) -> Self:
        """Return the paths below `/v1/jobs/{job_id}`."""
        base = f"/v1/jobs/{job_id}"
        return cls(
            self=base,
            events=f"{base}/events",
            report=f"{base}/report",
            artifacts=f"{base}/artifacts",
            cancel=f"{base}/cancel",
            pause=f"{base}/pause",
            resume=f"{base}/resume",
            retry=f"{base}/retry",
        )


class Job(Resource):
    """A job."""

    object: Literal["job"] = "job"
    sweep_id: str | None
    state: State
    stage: Stage | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    claimed_at: datetime | None = Field(
        default=None, description="Start of the last attempt, also of one after a pause."
    )
    worked_seconds: float = Field(
        default=0.0,
        description="Time for which workers ran the job, without queue and pauses; of a running "
        "job, without the attempt that began at `claimed_at`.",
    )
    model: ModelSource
    compression: CompressionConfig
    evaluation: EvaluationConfig | None
    progress: Progress | None
    result: JobResult | None
    error: JobError | None
    attempt: int
    max_attempts: int
    priority: int
    """Queued jobs with the highest number are taken first."""
    max_runtime_s: int | None
    """Time limit of one attempt."""
    max_pending_s: int | None
    """Time limit from queueing to start."""
    labels: dict[str, str]
    pinned: bool
    expires_at: datetime | None
    """Time when its artifacts will be removed."""
    expired_at: datetime | None
    """Time when its artifacts were removed."""
    artifacts_missing: bool = False
    """True if published files were missing in the artifact store at the last check."""
    waiting: Waiting | None = Field(
        default=None,
        description="Reason why no registered worker can run the queued job; null while one can.",
    )
    queue_position: int | None = Field(
        default=None,
        description="Place of a queued job among all queued jobs of the deployment: 1 is claimed "
        "next. The highest priority comes first, among equals the oldest job.",
    )
    urls: JobUrls

    @property
    def ratio(self) -> float | None:
        """Removed fraction: the requested one, or the achieved one of a job with a target size."""
        if self.compression.ratio is not None:
            return self.compression.ratio
        return self.result.achieved_ratio if self.result else None


class JobRecord(Job):
    """A job with the fields that only the service sees; they are never serialised."""

    project_id: str = Field(exclude=True)
    fencing_token: int = Field(exclude=True)
    lease_owner: str | None = Field(exclude=True)
    traceparent: str | None = Field(exclude=True)
    """Trace context of the creating request, parent of the worker's spans."""
    store_prefix: str = Field(exclude=True)
    """Prefix of the job's keys in the store; empty for jobs of earlier releases."""
    gpu_bytes: int | None = Field(default=None, exclude=True)
    """Memory that the job needs on a GPU; None if it was not known when it was created."""
    host_bytes: int | None = Field(default=None, exclude=True)
    """Memory that it needs on a host whose CPU runs it."""

    @property
    def memory(self) -> RequiredMemory:
        return RequiredMemory(gpu_bytes=self.gpu_bytes, host_bytes=self.host_bytes)

    @property
    def lease(self) -> Lease:
        """The lease of the worker that runs the job.

        Raises:
            ValueError: if no worker runs it.
        """
        if self.lease_owner is None:
            raise ValueError(f"{self.id} has no lease: no worker runs it")
        return Lease(job_id=self.id, owner=self.lease_owner, token=self.fencing_token)


class JobList(Page[Job]):
    """One page of jobs, newest first."""
