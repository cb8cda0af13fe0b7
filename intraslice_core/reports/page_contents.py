"""What the page about a compression is made from.

ReportPage
├── report: CompressionReport   the engine's, the same that is published as JSON
├── job: JobFacts               of the service, where there was one
├── files: PublishedFile        what it has published
├── results: ModelResult        this job and earlier ones of the same model
└── json_url, artifacts_url     where the rest is
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from intraslice_core.config import Allocation, EvaluationConfig, Method
from intraslice_core.reports.schema import CompressionReport


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What the service knows of a run."""

    id: str
    model: str
    """As it was named to the service; the report may hold a path of the worker's."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expired_at: datetime | None = None
    """When its files were removed."""
    attempt: int = 1
    labels: dict[str, str] = field(default_factory=dict)
    evaluation: EvaluationConfig | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file of the result."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One job's outcome in a few numbers; the ratios are compressed over dense."""

    job_id: str
    url: str
    created_at: datetime
    labels: dict[str, str]
    method: Method
    allocation: Allocation
    params_after: int
    bytes_after: int
    removed_fraction: float | None
    text: str | None
    """On which the perplexity is."""
    perplexity_ratio: float | None
    prefill_ratio: float | None
    decode_ratio: float | None
    is_this: bool
    """Whether the page is about this job."""
    is_comparable: bool
    """Whether it was scored on the same tokens as the page's job."""


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """One compression, and what is known around it."""

    report: CompressionReport
    job: JobFacts | None = None
    files: tuple[PublishedFile, ...] = ()
    results: tuple[ModelResult, ...] = ()
    json_url: str | None = None
    artifacts_url: str | None = None

    @property
    def model(self) -> str:
        """The dense model, as whoever asked named it."""
        return self.job.model if self.job else self.report.model

    @property
    def name(self) -> str:
        """The same without the directories before it."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]
