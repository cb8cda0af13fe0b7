"""The wire format of a comparison."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from app.api.schemas import JobUrls
from app.domain.comparison import ComparedJob, Comparison, TaskQuality, TextQuality
from app.domain.job import Speedup
from app.domain.lifecycle import State


class SizeOut(BaseModel):
    """Parameters and bytes of weights, dense and compressed.

    `achieved_ratio` is the fraction of the compressible parameters that is gone.
    """

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    achieved_ratio: float | None


class ComparedJobOut(BaseModel):
    """One job; `size`, `quality`, `tasks` and `speed` are null until it has succeeded."""

    id: str
    state: State
    created_at: datetime
    labels: dict[str, str]
    size: SizeOut | None
    quality: list[TextQuality] | None
    tasks: list[TaskQuality] | None
    speed: Speedup | None
    urls: JobUrls

    @classmethod
    def of(cls, compared: ComparedJob) -> ComparedJobOut:
        job, result = compared.job, compared.job.result
        return cls(
            id=job.id,
            state=job.state,
            created_at=job.created_at,
            labels=job.labels,
            size=result
            and SizeOut(
                params_before=result.params_before,
                params_after=result.params_after,
                bytes_before=result.bytes_before,
                bytes_after=result.bytes_after,
                achieved_ratio=result.achieved_ratio,
            ),
            quality=None if compared.quality is None else list(compared.quality),
            tasks=None if compared.tasks is None else list(compared.tasks),
            speed=compared.speed,
            urls=JobUrls.of(job.id),
        )


class SettingOut(BaseModel):
    """One setting, with a value for each job in their order."""

    name: str
    values: list[Any]
    differs: bool


class ComparisonOut(BaseModel):
    """Jobs side by side, in the order they were named."""

    object: Literal["comparison"] = "comparison"
    jobs: list[ComparedJobOut]
    settings: list[SettingOut]

    @classmethod
    def of(cls, comparison: Comparison) -> ComparisonOut:
        return cls(
            jobs=[ComparedJobOut.of(one) for one in comparison.jobs],
            settings=[
                SettingOut(name=row.name, values=list(row.values), differs=row.differs)
                for row in comparison.settings
            ],
        )
