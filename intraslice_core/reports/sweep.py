"""Request and report of a sweep: compressions of one model at several ratios."""

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
    """Compression of one model at several ratios with the same settings."""

    model: str
    settings: CompressionSettings
    ratios: tuple[Ratio, ...]
    evaluation: EvaluationConfig | None
    verify: bool = True

    def config(self, ratio: float) -> CompressionConfig:
        """Return the settings for one ratio."""
        return CompressionConfig(ratio=ratio, **dict(self.settings))


class SweepPoint(FrozenModel):
    """Result of one ratio."""

    ratio: float = Field(description="Requested fraction of the compressible parameters to remove.")
    directory: str = Field(
        description="Directory of the checkpoint, relative to the sweep's directory."
    )
    achieved_ratio: float | None = None
    params_after: int | None = None
    bytes_after: int | None = None
    perplexity: tuple[PerplexityComparison, ...] = ()
    seconds: float | None = Field(
        default=None,
        description="Duration of the finishing run in seconds, without opening the model.",
    )
    resumed_layers: int = Field(
        default=0,
        description="Number of layers finished by an earlier run, whose seconds are not counted.",
    )
    refused: str | None = Field(
        default=None, description="Reason why there is no checkpoint; null where there is one."
    )

    @classmethod
    def of(cls, ratio: float, directory: str, report: CompressionReport) -> Self:
        """Return the result from the report of a finished compression."""
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
    """Results of one model at several ratios, in the order of compression."""

    engine_version: str
    model: str = Field(description="Reference of the dense model, as given.")
    settings: CompressionSettings
    evaluation: EvaluationConfig | None
    params_before: int
    bytes_before: int
    opening_seconds: float
    points: tuple[SweepPoint, ...] = ()

    def relative_cost(self, point: SweepPoint) -> float | None:
        """Return a ratio's duration over that of the first, which measures the sensitivity."""
        first = self.points[0].seconds if self.points else None
        return point.seconds / first if first and point.seconds is not None else None
