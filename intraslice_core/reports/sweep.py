"""Request and report of a sweep: one model at several ratios, by one or several methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Self

from pydantic import Field

from intraslice_core.config import (
    CompressionConfig,
    CompressionSettings,
    EvaluationConfig,
    FrozenModel,
    MethodChoice,
    Methods,
    Ratio,
)
from intraslice_core.reports.schema import (
    CompressionReport,
    PartSpeed,
    PerplexityComparison,
    TaskComparison,
)

TRADE_OFFS: Mapping[bool | None, str] = MappingProxyType(
    {None: "", True: "Beaten on size and quality", False: "Best trade-off"}
)
"""Words for `SweepReport.is_dominated`."""
SIZE_TOLERANCE = 0.005
"""Largest difference of the methods' parameter counts at one ratio that counts as equal sizes."""


class SweepChild(FrozenModel):
    """One compression of a sweep."""

    method: MethodChoice
    ratio: Ratio


class SweepRequest(FrozenModel):
    """Compressions of one model with the same settings: every method at every ratio."""

    model: str
    settings: CompressionSettings
    ratios: tuple[Ratio, ...]
    methods: Methods = Field(
        default=(), description="Methods to compare; empty stands for the method of the settings."
    )
    evaluation: EvaluationConfig | None
    verify: bool = True

    @property
    def children(self) -> tuple[SweepChild, ...]:
        """All compressions, the ratios of one method after each other."""
        methods = self.methods or (self.settings.method,)
        return tuple(
            SweepChild(method=method, ratio=ratio) for method in methods for ratio in self.ratios
        )

    def config(self, child: SweepChild) -> CompressionConfig:
        """Return the settings of one compression."""
        settings = dict(self.settings) | {"method": child.method}
        return CompressionConfig(ratio=child.ratio, **settings)


class SweepPoint(FrozenModel):
    """Result of one method at one ratio."""

    method: MethodChoice | None = Field(
        default=None, description="Compression method; null in reports of earlier versions."
    )
    ratio: float = Field(description="Requested fraction of the compressible parameters to remove.")
    directory: str = Field(
        description="Directory of the checkpoint, relative to the sweep's directory."
    )
    achieved_ratio: float | None = None
    params_after: int | None = None
    bytes_after: int | None = None
    perplexity: tuple[PerplexityComparison, ...] = ()
    tasks: tuple[TaskComparison, ...] = ()
    speed: PartSpeed | None = Field(
        default=None, description="Speed of the whole model; null where it was not measured."
    )
    seconds: float | None = Field(
        default=None,
        description="Duration of the finishing run in seconds, without opening the model. What "
        "compressions share counts for the first of them.",
    )
    peak_memory_bytes: int | None = Field(
        default=None, description="Peak memory of the finishing run in bytes."
    )
    resumed_layers: int = Field(
        default=0,
        description="Number of layers finished by an earlier run, whose seconds are not counted.",
    )
    refused: str | None = Field(
        default=None, description="Reason why there is no checkpoint; null where there is one."
    )

    @classmethod
    def of(cls, child: SweepChild, directory: str, report: CompressionReport) -> Self:
        """Return the result from the report of a finished compression."""
        evaluation = report.evaluation
        speed = evaluation.speed if evaluation else None
        return cls(
            method=child.method,
            ratio=child.ratio,
            directory=directory,
            achieved_ratio=report.removed_fraction,
            params_after=report.params_after,
            bytes_after=report.bytes_after,
            perplexity=evaluation.perplexity if evaluation else (),
            tasks=evaluation.tasks if evaluation else (),
            speed=speed.whole if speed else None,
            seconds=report.seconds,
            peak_memory_bytes=report.peak_memory_bytes,
            resumed_layers=report.resumed_layers,
        )


class SizeCheck(FrozenModel):
    """Parameter counts of all methods at one ratio."""

    ratio: float
    params_min: int = Field(description="Smallest number of parameters of a result.")
    params_max: int = Field(description="Largest number of parameters of a result.")
    equal: bool = Field(
        description="True if both differ by at most 0.5 %, so that the methods are comparable."
    )

    @property
    def difference(self) -> float:
        """Difference of the counts as a fraction of the larger one."""
        return 1.0 - self.params_min / self.params_max

    @property
    def warning(self) -> str | None:
        """Sentence about unequal sizes; None where they are equal."""
        if self.equal:
            return None
        return (
            f"at ratio {self.ratio!r} the results have {self.params_min:,} to {self.params_max:,} "
            f"parameters, {self.difference:.1%} apart: compare them by size, not by ratio"
        )


def check_sizes(params: Iterable[tuple[float, int | None]]) -> tuple[SizeCheck, ...]:
    """Return the check of every ratio with two results or more, ascending.

    Args:
        params: ratio and number of parameters of every result; None has no result yet.
    """
    by_ratio: dict[float, list[int]] = {}
    for ratio, count in params:
        if count is not None:
            by_ratio.setdefault(ratio, []).append(count)
    return tuple(
        SizeCheck(
            ratio=ratio,
            params_min=min(counts),
            params_max=max(counts),
            equal=max(counts) - min(counts) <= SIZE_TOLERANCE * max(counts),
        )
        for ratio, counts in sorted(by_ratio.items())
        if len(counts) > 1
    )


def dominates(costs: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether `costs` are nowhere higher and somewhere lower, in what both have measured."""
    pairs = list(zip(costs, other, strict=False))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _costs(point: SweepPoint, texts: Sequence[str]) -> tuple[float, ...] | None:
    """Return what to minimise: bytes, perplexities, and if measured the negative decode speed.

    None unless every text was scored: a smaller file alone is no reason to prefer a result.
    """
    scores = {score.text: score.compressed for score in point.perplexity}
    if point.bytes_after is None or not texts or not scores.keys() >= set(texts):
        return None
    slowness = () if point.speed is None else (-point.speed.decode.ratio,)
    return (float(point.bytes_after), *(scores[text] for text in texts), *slowness)


class SweepReport(FrozenModel):
    """Results of one model at several ratios and by all methods, in the order of compression."""

    engine_version: str
    model: str = Field(description="Reference of the dense model, as given.")
    settings: CompressionSettings
    methods: tuple[MethodChoice, ...] = Field(
        default=(), description="Compared methods; empty for the method of the settings alone."
    )
    evaluation: EvaluationConfig | None
    params_before: int
    bytes_before: int
    opening_seconds: float
    points: tuple[SweepPoint, ...] = ()
    sizes: tuple[SizeCheck, ...] = Field(
        default=(), description="Parameter counts of all methods at each ratio."
    )

    def with_point(self, point: SweepPoint) -> Self:
        """Return the report with one more result."""
        points = (*self.points, point)
        sizes = check_sizes((other.ratio, other.params_after) for other in points)
        return self.model_copy(update={"points": points, "sizes": sizes})

    @property
    def dense_perplexity(self) -> Mapping[str, float]:
        """Perplexity of the dense model by text, in the order of evaluation."""
        return {score.text: score.dense for point in self.points for score in point.perplexity}

    def is_dominated(self, point: SweepPoint) -> bool | None:
        """Return whether another result is at least as good in size and quality, and better in one.

        Compared are the bytes, the perplexity on every text and, where both have it, the speed of
        generation; None for a point without a perplexity.
        """
        texts = tuple(self.dense_perplexity)
        costs = _costs(point, texts)
        if costs is None:
            return None
        others = (_costs(other, texts) for other in self.points)
        return any(dominates(other, costs) for other in others if other is not None)

    def relative_cost(self, point: SweepPoint) -> float | None:
        """Return a point's duration over that of its method's first, which measures."""
        first = next((other for other in self.points if other.method == point.method), point)
        return point.seconds / first.seconds if first.seconds and point.seconds else None
