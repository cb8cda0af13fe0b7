"""What all layers were cut by, a dimension a drawing: a row a layer, darker where more is, a cut.

Cells of one shade are one path: a drawing of many layers stays small.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from intraslice_core.reports.quantities import percent
from intraslice_core.reports.schema import SpectrumReport
from intraslice_core.reports.template import rendered, short

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
