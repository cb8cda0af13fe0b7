"""Contents of the HTML report of a compression.

ReportPage
├── report: CompressionReport   the engine's report, also published as JSON
├── job: JobFacts               the service's job; None for a local run
├── files: PublishedFile        published files
├── results: ModelResult        this job and other jobs of the same model
└── json_url, artifacts_url     links to the JSON report and the files
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from intraslice_core.config import Allocation, EvaluationConfig, MethodChoice
from intraslice_core.reports.loading import HERE, directory_name
from intraslice_core.reports.references import model_name, public_reference
from intraslice_core.reports.schema import CompressionReport


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """Facts about the service's job."""

    id: str
    model: str
    """Model reference as given to the service; the report may hold a path on the worker."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expired_at: datetime | None = None
    """Time at which the job's files were deleted."""
    attempt: int = 1
    worked_seconds: float = 0.0
    """Time for which workers ran the job, without queue and pauses."""
    labels: dict[str, str] = field(default_factory=dict)
    evaluation: EvaluationConfig | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """Published file of the result."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """Key figures of one job; ratios are compressed / dense."""

    job_id: str
    url: str
    created_at: datetime
    labels: dict[str, str]
    method: MethodChoice
    allocation: Allocation
    params_after: int
    bytes_after: int
    removed_fraction: float | None
    text: str | None
    """Text on which the perplexity was measured."""
    perplexity_ratio: float | None
    kl: float | None
    """Mean KL(dense ‖ compressed) on that text, in nats per token."""
    top1_agreement: float | None
    prefill_ratio: float | None
    decode_ratio: float | None
    is_this: bool
    """True for the job of the page."""
    is_comparable: bool
    """True if the job was scored on the same tokens as the job of the page."""


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """One compression with its job, files and comparable results."""

    report: CompressionReport
    job: JobFacts | None = None
    files: tuple[PublishedFile, ...] = ()
    results: tuple[ModelResult, ...] = ()
    json_url: str | None = None
    artifacts_url: str | None = None

    @property
    def model(self) -> str:
        """Reference of the dense model without the directories of a path."""
        return public_reference(self.job.model if self.job else self.report.model)

    @property
    def name(self) -> str:
        """Name of the dense model."""
        return model_name(self.job.model if self.job else self.report.model)

    @property
    def place(self) -> str:
        """Directory of the files in the code that loads them."""
        return f"./{directory_name(self.name)}" if self.job else HERE
