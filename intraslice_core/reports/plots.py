"""What all layers were cut by, a dimension a drawing: a row a layer, darker where more is, a cut.

Cells of one shade are one path: a drawing of many layers stays small.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.reports.formatting import percent, rendered, short
from intraslice_core.reports.schema import CompressionReport, SpectrumReport

LEFT, TOP, RIGHT, BOTTOM = 128.0, 58.0, 16.0, 40.0
ROW, GAP = 84.0, 22.0
"""Height of a row, and the space below it."""
_WIDEST_BAR = 22.0
_NARROWEST_PLOT = 480.0
_MOST_LABELS = 16
_SIZE: dict[str, Callable[[LayerPlan], int]] = {
    "query heads": lambda layer: layer.num_attention_heads,
    "rotary pairs": lambda layer: layer.qk_pairs,
    "value dims": lambda layer: layer.v_head_dim,
    "MLP width": lambda layer: layer.intermediate_size,
}
_COLOURS = ("#4477aa", "#228833", "#ccbb44", "#aa3377")
"""Told apart with any kind of sight."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One layer's size in one dimension; `removed` ones have no height to see."""

    x: float
    y: float
    height: float
    text: str
    removed: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dimension over all layers."""

    name: str
    dense: int
    top: float
    colour: str
    bars: tuple[Bar, ...]


def shape_plot(report: CompressionReport, *, inline: bool = False) -> Markup:
    """Four rows, one a dimension, with a bar a layer: the part of the dense size that is kept.

    Args:
        report: of the model.
        inline: for an HTML page, whose stylesheet may give the classes other colours.

    Returns:
        An SVG document; an element of one where `inline`.
    """
    layers = len(report.plan.layers)
    step = max(_NARROWEST_PLOT / layers, 6.0)
    step = min(step, _WIDEST_BAR * 1.25) if layers > 1 else _WIDEST_BAR
    rows = _rows(report, step)
    every = -(-layers // _MOST_LABELS)
    return rendered(
        "shape_plot.svg.j2",
        inline=inline,
        title=f"{report.model.rsplit('/', 1)[-1]}: what every layer keeps",
        subtitle=_subtitle(report),
        rows=rows,
        ticks=[(LEFT + (layer + 0.5) * step, layer) for layer in range(0, layers, every)],
        left=LEFT,
        right=LEFT + layers * step,
        width=max(LEFT + layers * step, LEFT + _NARROWEST_PLOT) + RIGHT,
        height=TOP + len(rows) * (ROW + GAP) + BOTTOM,
        bar_width=0.8 * step,
        row_height=ROW,
    )


def _rows(report: CompressionReport, step: float) -> list[Row]:
    dense = report.geometry.dense_layer()
    return [
        Row(
            name=name,
            dense=size(dense),
            top=TOP + index * (ROW + GAP),
            colour=_COLOURS[index],
            bars=_bars(report.plan, name, size(dense), (TOP + index * (ROW + GAP), step)),
        )
        for index, (name, size) in enumerate(_SIZE.items())
    ]


def _bars(plan: ModelPlan, name: str, dense: int, place: tuple[float, float]) -> tuple[Bar, ...]:
    top, step = place
    bars = []
    for index, layer in enumerate(plan.layers):
        kept = _SIZE[name](layer)
        height = ROW * kept / dense
        bars.append(
            Bar(
                x=LEFT + (index + 0.1) * step,
                y=top + ROW - height,
                height=height,
                text=f"layer {index}: {kept} of {dense} {name}",
                removed=kept == 0,
            )
        )
    return tuple(bars)


def _subtitle(report: CompressionReport) -> str:
    allocator = f", allocated by {report.allocation.allocator}" if report.allocation else ""
    return f"{report.removed_fraction:.1%} removed by {report.method}{allocator}"


WIDTH = 440.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 18.0, 22.0, 40.0
_COLUMNS = 40
_SHADES = 8
_DECADES = 3.0
"""Below the largest of a drawing: what is less is as light as can be."""
_HIGHEST, _LOWEST = 14.0, 5.0
"""Of a row."""
_TALLEST = 230.0


@dataclass(frozen=True, kw_only=True)
class LayerSpectrum:
    """A layer's row."""

    layer: int
    spectrum: SpectrumReport


@dataclass(frozen=True, kw_only=True)
class _Row:
    layer: int
    top: float
    cut: float
    text: str
    labelled: bool


@dataclass(frozen=True, kw_only=True)
class _Shade:
    level: int
    gone: bool
    path: str


def spectrum_plot(title: str, description: str, layers: Sequence[LayerSpectrum]) -> Markup:
    """A row for each layer.

    Args:
        title: what is drawn.
        description: the same in words.
        layers: at least one, ascending, of one dimension.

    Returns:
        An SVG element for an HTML page.
    """
    height = max(_LOWEST, min(_HIGHEST, _TALLEST / len(layers)))
    every = -(-len(layers) // 12)
    right = WIDTH - RIGHT
    rows = [
        _Row(
            layer=one.layer,
            top=TOP + index * height,
            cut=LEFT + (right - LEFT) * one.spectrum.kept / one.spectrum.size,
            text=row_text(one),
            labelled=index % every == 0,
        )
        for index, one in enumerate(layers)
    ]
    return rendered(
        "spectrum_plot.svg.j2",
        title=title,
        description=description,
        width=WIDTH,
        height=TOP + len(layers) * height + BOTTOM,
        left=LEFT,
        right=right,
        bottom=TOP + len(layers) * height,
        row_height=height,
        rows=rows,
        shades=_shades(layers, height, right),
        levels=_SHADES,
    )


def row_text(one: LayerSpectrum) -> str:
    """A row in words."""
    found = one.spectrum
    return (
        f"layer {one.layer}: {found.kept:,} of {found.size:,} kept, "
        f"{percent(found.kept_share)} of the sum"
    )


def _shades(layers: Sequence[LayerSpectrum], height: float, right: float) -> list[_Shade]:
    columns = [_columns(one.spectrum) for one in layers]
    highest = max(max(row) for row in columns)
    step = (right - LEFT) / _COLUMNS
    shape = f"h{short(step)}v{short(height)}h-{short(step)}z"
    paths: dict[tuple[int, bool], list[str]] = {}
    for index, (one, row) in enumerate(zip(layers, columns, strict=True)):
        y = TOP + index * height
        for place, value in enumerate(row):
            gone = (place + 0.5) / _COLUMNS > one.spectrum.kept / one.spectrum.size
            cell = f"M{short(LEFT + place * step)} {short(y)}{shape}"
            paths.setdefault((_level(value, highest), gone), []).append(cell)
    return [
        _Shade(level=level, gone=gone, path="".join(cells))
        for (level, gone), cells in sorted(paths.items())
    ]


def _columns(spectrum: SpectrumReport) -> list[float]:
    """Values at evenly spaced parts of the ranks, in units of their mean."""
    found = []
    for place in range(_COLUMNS):
        rank = (place + 0.5) / _COLUMNS * spectrum.size - 0.5
        at = min(bisect.bisect_left(spectrum.ranks, rank), len(spectrum.ranks) - 1)
        found.append(spectrum.values[at] * spectrum.size)
    return found


def _level(value: float, highest: float) -> int:
    """By powers of ten, from 1, the lightest."""
    if value <= 0.0 or highest <= 0.0:
        return 1
    below = min(math.log10(highest / value) / _DECADES, 1.0)
    return 1 + round((1.0 - below) * (_SHADES - 1))
