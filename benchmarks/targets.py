"""Quality targets of `quality.py`: how a figure is computed, its bound, and whether it is met.

A Δppl ratio is (IntraSlice+ - dense) / (reference - dense) in perplexity, on one text. The figure
in domain is the mean of the ratios over the texts of the calibration's domain, the figure out of
domain that over all others, so that every kind of text counts alike. The largest ratio out of
domain is shown beside it. Where a row has several references, each text takes its best one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType
from typing import Any, Literal

OURS = "intraslice_plus"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of one row at one ratio; None sets none."""

    in_domain: float | None = None
    out_of_domain: float | None = None


NO_BOUNDS = Bounds()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Row of the table of targets that compares IntraSlice+ with other methods at equal size."""

    name: str
    """Name that `--only` takes."""
    title: str
    references: tuple[str, ...]
    """Methods to compare with, as `measurements.MethodVariant` reads them."""
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    """Bounds by ratio."""
    ratios: tuple[str, ...] | None = None
    """Ratios of the row; None compares at all."""
    on_mixture: bool = False
    """Calibrate on the engine's default mixture, and bound the ratio on the first text alone."""


_FISHER, _FISHER_PCA = "intraslice:fisher", "intraslice:fisher_pca"

COMPARISONS = (
    Comparison(
        name="fisher_pca",
        title="over intraslice, fisher_pca",
        references=(_FISHER_PCA,),
        bounds={
            "0.3": Bounds(in_domain=0.50, out_of_domain=0.50),
            "0.5": Bounds(in_domain=0.40, out_of_domain=0.50),
        },
    ),
    Comparison(
        name="fisher",
        title="over intraslice, fisher",
        references=(_FISHER,),
        bounds={
            "0.3": Bounds(in_domain=0.60, out_of_domain=0.65),
            "0.5": Bounds(in_domain=0.60, out_of_domain=0.65),
        },
    ),
    Comparison(
        name="fisher_pca+self",
        title="over intraslice, fisher_pca, with self-written text",
        references=(f"{_FISHER_PCA}+self",),
        ratios=("0.3", "0.5"),
    ),
    Comparison(
        name="fisher+self",
        title="over intraslice, fisher, with self-written text",
        references=(f"{_FISHER}+self",),
        ratios=("0.3", "0.5"),
    ),
    Comparison(
        name="other",
        title="over the best other method",
        references=(
            "flap",
            "wanda_sp",
            "2ssp",
            "modegpt",
            "transact",
            "shortgpt",
            "fusegpt",
            "spp",
            "disp",
            "slicegpt",
            _FISHER,
            _FISHER_PCA,
        ),
        bounds={"0.2": Bounds(in_domain=0.85, out_of_domain=0.85)},
        ratios=("0.2",),
    ),
    Comparison(
        name="mixture",
        title="on the default mixture, over the best intraslice",
        references=(_FISHER, _FISHER_PCA),
        bounds={"0.3": Bounds(out_of_domain=0.70)},
        ratios=("0.3",),
        on_mixture=True,
    ),
)

RECOVERY = "recovery"
RECOVERY_BOUNDS = MappingProxyType({"0.3": Bounds(in_domain=0.5, out_of_domain=0.35)})
"""Smallest recovered fractions of Δppl by ratio."""
RANK_CORRELATION = "rank_correlation"
MIN_RANK_CORRELATION = 0.9

ROWS = (*(row.name for row in COMPARISONS), RANK_CORRELATION, RECOVERY)


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """Perplexities of both models on one text."""

    dense: float
    compressed: float

    @property
    def increase(self) -> float:
        """Return Δppl."""
        return self.compressed - self.dense


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Value with its bound."""

    value: float
    bound: float | None
    sense: Literal["at most", "at least"] = "at most"
    worst: tuple[str, float] | None = None
    """Text with the worst value, and that value."""

    @property
    def met(self) -> bool | None:
        """Return whether the bound is met; None without one."""
        if self.bound is None:
            return None
        return self.value <= self.bound if self.sense == "at most" else self.value >= self.bound

    @property
    def verdict(self) -> str:
        """Return the bound and whether it is met, for the table."""
        if self.bound is None:
            return ""
        sign = "≤" if self.sense == "at most" else "≥"
        return f"{sign} {self.bound:.2f} {'met' if self.met else 'missed'}"

    def facts(self) -> dict[str, Any]:
        """Return the entry of the last line's JSON."""
        worst = None
        if self.worst is not None:
            worst = {"text": self.worst[0], "value": _finite(self.worst[1])}
        return {
            "value": _finite(self.value),
            "target": self.bound,
            "sense": self.sense,
            "met": self.met,
            "worst": worst,
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures of one row of the table of targets for one model."""

    row: str
    title: str
    ratio: str
    in_domain: Figure | None
    out_of_domain: Figure | None

    def facts(self) -> dict[str, Any]:
        """Return the entry of the last line's JSON."""
        figures = {"in_domain": self.in_domain, "out_of_domain": self.out_of_domain}
        return {"row": self.row, "ratio": self.ratio} | {
            name: figure and figure.facts() for name, figure in figures.items()
        }


def delta_ppl_ratio(ours: TextScore, references: Sequence[TextScore]) -> float:
    """Return Δppl over that of the best reference; infinite where the reference loses nothing."""
    reference = min(score.increase for score in references)
    if reference <= 0.0:
        return math.inf if ours.increase > 0.0 else 1.0
    return ours.increase / reference


def compare(
    row: Comparison,
    ratio: str,
    scores: Mapping[str, Mapping[str, TextScore]],
    in_domain: Sequence[str],
) -> Result:
    """Return the figures of a comparison at one ratio.

    Args:
        row: the comparison.
        ratio: as a key of the row's bounds.
        scores: scores by method, then by text, those of `OURS` and of one or more references.
        in_domain: texts of the calibration's domain.
    """
    references = [name for name in row.references if name in scores]
    ratios = {
        text: delta_ppl_ratio(ours, [scores[name][text] for name in references])
        for text, ours in scores[OURS].items()
    }
    outside = {text: value for text, value in ratios.items() if text not in in_domain}
    bounds = row.bounds.get(ratio, NO_BOUNDS)
    figure = _figure(outside, bounds.out_of_domain)
    first = next(iter(ratios))
    if row.on_mixture and figure is not None and first in outside:
        figure = Figure(value=outside[first], bound=figure.bound, worst=figure.worst)
    inside = {text: value for text, value in ratios.items() if text in in_domain}
    return Result(
        row=row.name,
        title=row.title,
        ratio=ratio,
        in_domain=_figure(inside, bounds.in_domain),
        out_of_domain=figure,
    )


def recovered(ratio: str, fractions: Mapping[str, float], in_domain: Sequence[str]) -> Result:
    """Return the recovered fractions of Δppl at one ratio.

    Args:
        ratio: as a key of `RECOVERY_BOUNDS`.
        fractions: recovered fraction of every text.
        in_domain: texts of the fine-tuning's domain.
    """
    bounds = RECOVERY_BOUNDS.get(ratio, NO_BOUNDS)
    inside = {text: value for text, value in fractions.items() if text in in_domain}
    outside = {text: value for text, value in fractions.items() if text not in in_domain}
    return Result(
        row=RECOVERY,
        title="recovered fraction of Δppl",
        ratio=ratio,
        in_domain=_figure(inside, bounds.in_domain, "at least"),
        out_of_domain=_figure(outside, bounds.out_of_domain, "at least"),
    )


def rank_correlation(ratio: str, value: float) -> Result:
    """Return the rank correlation of predicted and measured loss, in domain."""
    figure = Figure(value=value, bound=MIN_RANK_CORRELATION, sense="at least")
    return Result(
        row=RANK_CORRELATION,
        title="rank correlation of predicted and measured loss",
        ratio=ratio,
        in_domain=figure,
        out_of_domain=None,
    )


def _figure(
    values: Mapping[str, float],
    bound: float | None,
    sense: Literal["at most", "at least"] = "at most",
) -> Figure | None:
    """Return the mean over some texts with the worst of several; None without texts."""
    if not values:
        return None
    worst = (max if sense == "at most" else min)(values, key=lambda text: values[text])
    return Figure(
        value=fmean(values.values()),
        bound=bound,
        sense=sense,
        worst=(worst, values[worst]) if len(values) > 1 else None,
    )


def _finite(value: float) -> float | None:
    """Return a value that JSON has a number for; None for infinity."""
    return value if math.isfinite(value) else None
