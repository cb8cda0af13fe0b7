"""Several compressions of one model: what is asked for, and what it came to, side by side."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from intraslice_core.config import (
    CompressionConfig,
    CompressionSettings,
    EvaluationConfig,
    FrozenModel,
    Ratio,
)
from intraslice_core.reports.schema import CompressionReport, PerplexityComparison


class SweepRequest(FrozenModel):
    """The same compression at several ratios."""

    model: str
    settings: CompressionSettings
    ratios: tuple[Ratio, ...]
    evaluation: EvaluationConfig | None
    verify: bool = True

    def config(self, ratio: float) -> CompressionConfig:
        """Of one ratio."""
        return CompressionConfig(ratio=ratio, **dict(self.settings))


class SweepPoint(FrozenModel):
    """One ratio."""

    ratio: float
    directory: str = Field(description="of the checkpoint, below that of the sweep")
    achieved_ratio: float | None = None
    params_after: int | None = None
    bytes_after: int | None = None
    perplexity: tuple[PerplexityComparison, ...] = ()
    seconds: float | None = Field(
        default=None, description="of the run that finished it, without opening the model"
    )
    resumed_layers: int = Field(
        default=0, description="finished by an earlier run, whose seconds are not counted"
    )
    refused: str | None = Field(default=None, description="why there is no checkpoint")

    @classmethod
    def of(cls, ratio: float, directory: str, report: CompressionReport) -> Self:
        """From the report of the finished compression."""
        return cls(
            ratio=ratio,
            directory=directory,
            achieved_ratio=report.removed_fraction,
            params_after=report.params_after,
            bytes_after=report.bytes_after,
            perplexity=report.evaluation.perplexity if report.evaluation else (),
            seconds=report.seconds,
            resumed_layers=report.resumed_layers,
        )


class SweepReport(FrozenModel):
    """One model at several ratios, in the order in which they were compressed."""

    engine_version: str
    model: str = Field(description="reference of the dense model, as given")
    settings: CompressionSettings
    evaluation: EvaluationConfig | None
    params_before: int
    bytes_before: int
    opening_seconds: float
    points: tuple[SweepPoint, ...] = ()

    def relative_cost(self, point: SweepPoint) -> float | None:
        """Seconds of a ratio over those of the first, which learns for all."""
        first = self.points[0].seconds if self.points else None
        return point.seconds / first if first and point.seconds is not None else None
