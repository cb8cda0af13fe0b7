"""Plots of all layers: the retained sizes, and the spectra by which dimensions were removed.

Drawn by matplotlib as SVG, as the charts of `intraslice_core.reports.chart` are.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from markupsafe import Markup

from intraslice_core.plan import LayerPlan
from intraslice_core.reports.quantities import percent
from intraslice_core.reports.references import model_name
from intraslice_core.reports.schema import CompressionReport, SpectrumReport
from intraslice_core.reports.svg import (
    BAD,
    INK,
    SERIES,
    Description,
    document,
    new_figure,
    page_element,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_BAR_SHARE = 0.8
"""Width of a bar in units of the distance between layers."""


def _set_layer_ticks(axis: Axis, most: int, layers: Sequence[int]) -> None:
    """Label at most `most` + 1 evenly spaced positions with the layers that stand there."""
    from matplotlib import ticker

    def label(position: float, _: int | None) -> str:
        index = round(position)
        return str(layers[index]) if index in range(len(layers)) else ""

    axis.set_major_locator(
        ticker.MaxNLocator(most, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    axis.set_major_formatter(ticker.FuncFormatter(label))


def _set_percent_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    from matplotlib import ticker

    axis.set_major_locator(ticker.FixedLocator(ticks))
    axis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0, symbol=" %"))


# -- retained sizes ------------------------------------------------------------------------------

_LAYER_WIDTH = 24.0
_NARROWEST_PLOT = 480.0
_ROW_HEIGHT = 106.0
_MARGIN, _HEADING = 56.0, 40.0
"""Space beside the rows and below them, and above them in a document, in pixels."""
_MOST_SHAPE_TICKS = 16
_Size = Callable[[LayerPlan], int]
_SIZE: dict[str, _Size] = {
    "query heads": lambda layer: layer.num_attention_heads,
    "rotary pairs": lambda layer: layer.qk_pairs,
    "value dims": lambda layer: layer.v_head_dim,
    "MLP width": lambda layer: layer.intermediate_size,
}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One dimension in all layers; `index` is the place of the row."""

    index: int
    name: str
    dense: int
    sizes: tuple[int, ...]

    def text(self, layer: int) -> str:
        """Describe the size of a layer."""
        return f"layer {layer}: {self.sizes[layer]} of {self.dense} {self.name}"


def shape_plot(report: CompressionReport, *, inline: bool = False) -> Markup:
    """Plot the retained fractions, with one row per dimension and one bar per layer.

    Args:
        report: report of the compression.
        inline: for an HTML page, whose stylesheet gives the colours.

    Returns:
        The content of an SVG file, or an SVG element where `inline`.
    """
    rows = _rows(report)
    layers = len(report.plan.layers)
    title = f"{model_name(report.model)}: retained size by layer"
    subtitle = _shape_subtitle(report)
    width = max(_MARGIN + layers * _LAYER_WIDTH, _NARROWEST_PLOT)
    height = len(rows) * _ROW_HEIGHT + _MARGIN + (0.0 if inline else _HEADING)
    with new_figure(width, height) as figure:
        places = figure.subplots(len(rows), sharex=True, squeeze=False)[:, 0]
        tooltips: dict[str, Sequence[str]] = {}
        for axes, row in zip(places, rows, strict=True):
            tooltips |= _draw_sizes(axes, row)
        _set_layer_ticks(places[-1].xaxis, _MOST_SHAPE_TICKS, range(layers))
        places[-1].set_xlabel("layer")
        description = Description(
            title=title,
            text=f"{subtitle}. Each bar is the retained fraction of the dense size in one layer.",
            tooltips=tooltips,
        )
        if inline:
            return page_element(figure, description, css_class="shapes")
        figure.suptitle(f"{title}\n{subtitle}", x=0.01, horizontalalignment="left")
        return document(figure, description)


def _rows(report: CompressionReport) -> tuple[_Row, ...]:
    """Return the sizes that are plotted; those in the residual stream only where some are cut."""
    geometry, plan = report.geometry, report.plan
    dense = geometry.dense_layer()
    residual = [plan.residual_sizes(layer, geometry) for layer in plan.layers]
    sizes = {name: (of(dense), tuple(map(of, plan.layers))) for name, of in _SIZE.items()}
    for name, size in plan.residual_sizes(dense, geometry).items():
        sizes[name] = (size, tuple(layer[name] for layer in residual))
    return tuple(
        _Row(index=index, name=name, dense=size, sizes=of_layers)
        for index, (name, (size, of_layers)) in enumerate(sizes.items())
    )


def _draw_sizes(axes: Axes, row: _Row) -> Mapping[str, Sequence[str]]:
    """Draw a bar for every layer, and a cross where nothing is left; return the tooltips."""
    retained = [layer for layer, size in enumerate(row.sizes) if size]
    removed = [layer for layer, size in enumerate(row.sizes) if not size]
    tooltips: dict[str, Sequence[str]] = {}
    heights = [row.sizes[layer] / row.dense for layer in retained]
    for layer, bar in zip(
        retained, axes.bar(retained, heights, _BAR_SHARE, color=SERIES[row.index]), strict=True
    ):
        bar.set_gid(f"bar-{row.index}-{layer}")
        bar.set_in_layout(False)  # it is inside the axes, and hundreds would cost seconds
        tooltips[f"bar-{row.index}-{layer}"] = (row.text(layer),)
    if removed:
        zeros = [0.0] * len(removed)
        (crosses,) = axes.plot(removed, zeros, "x", color=BAD, clip_on=False)
        crosses.set_gid(f"removed-{row.index}")
        tooltips[f"removed-{row.index}"] = tuple(map(row.text, removed))
    axes.set_title(f"{row.name} of {row.dense:,}")
    axes.set_xlim(-0.5, len(row.sizes) - 0.5)
    axes.set_ylim(0.0, 1.0)
    _set_percent_ticks(axes.yaxis, (0.0, 0.5, 1.0))
    return tooltips


def _shape_subtitle(report: CompressionReport) -> str:
    allocator = f", allocated by {report.allocation.allocator}" if report.allocation else ""
    return f"{report.removed_fraction:.1%} removed by {report.method}{allocator}"


# -- spectra -------------------------------------------------------------------------------------

_WIDTH = 440.0
_ABOVE_AND_BELOW = 70.0
"""Space above and below the rows, in pixels."""
_COLUMNS = 40
_SHADES = 8
_DECADES = 3.0
"""Range of the shades in powers of ten; smaller values get the lightest shade."""
_HIGHEST_ROW, _LOWEST_ROW = 14.0, 5.0
"""Limits of a row's height, in pixels."""
_TALLEST_PLOT = 230.0
_MOST_SPECTRUM_TICKS = 12


@dataclass(frozen=True, kw_only=True)
class LayerSpectrum:
    """Spectrum of one layer, drawn as a row."""

    layer: int
    spectrum: SpectrumReport


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Neighbouring cells of a row that look alike; `left` and `width` as fractions of the row."""

    row: int
    left: float
    width: float
    shade: int
    removed: bool


def spectrum_plot(title: str, description: str, layers: Sequence[LayerSpectrum]) -> Markup:
    """Plot spectra with one row per layer: darker cells are larger values, a line marks the cut.

    Args:
        title: title of the plot.
        description: content of the plot in words, for readers who do not see it.
        layers: at least one layer, in ascending order, all of the same dimension.

    Returns:
        An SVG element for an HTML page.
    """
    row_height = max(_LOWEST_ROW, min(_HIGHEST_ROW, _TALLEST_PLOT / len(layers)))
    with new_figure(_WIDTH, _ABOVE_AND_BELOW + len(layers) * row_height) as figure:
        axes = figure.add_subplot()
        tooltips = _draw_shades(axes, layers)
        cuts = [layer.spectrum.kept / layer.spectrum.size for layer in layers]
        edges = [row - 0.5 for row in range(len(layers) + 1)]
        axes.stairs(
            cuts, edges, orientation="horizontal", baseline=None, edgecolor=INK, linewidth=1.5
        )
        axes.grid(visible=False)
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(edges[-1], edges[0])
        axes.set_title("layer")
        axes.set_xlabel("rank, most valuable first")
        _set_percent_ticks(axes.xaxis, (0.0, 0.25, 0.5, 0.75, 1.0))
        _set_layer_ticks(axes.yaxis, _MOST_SPECTRUM_TICKS, [layer.layer for layer in layers])
        words = Description(title=title, text=description, tooltips=tooltips)
        return page_element(figure, words)


def row_text(layer: LayerSpectrum) -> str:
    """Describe a row in words."""
    spectrum = layer.spectrum
    return (
        f"layer {layer.layer}: {spectrum.kept:,} of {spectrum.size:,} retained, "
        f"{percent(spectrum.kept_share)} of the sum"
    )


def _draw_shades(axes: Axes, layers: Sequence[LayerSpectrum]) -> Mapping[str, Sequence[str]]:
    """Draw the cells of all rows, alike neighbours as one bar; return the tooltips."""
    from matplotlib.colors import to_rgba

    runs = list(_runs([layer.spectrum for layer in layers]))
    bars = axes.barh(
        [run.row for run in runs],
        [run.width for run in runs],
        height=1.0,
        left=[run.left for run in runs],
        color=[to_rgba(SERIES[run.removed], run.shade / _SHADES) for run in runs],
    )
    tooltips: dict[str, Sequence[str]] = {}
    for number, (run, bar) in enumerate(zip(runs, bars, strict=True)):
        bar.set_gid(f"cells-{number}")
        bar.set_in_layout(False)
        tooltips[f"cells-{number}"] = (row_text(layers[run.row]),)
    return tooltips


def _runs(spectra: Sequence[SpectrumReport]) -> Iterator[_Run]:
    columns = [_columns(spectrum) for spectrum in spectra]
    highest = max(max(row) for row in columns)
    for row, (spectrum, values) in enumerate(zip(spectra, columns, strict=True)):
        cut = _COLUMNS * spectrum.kept / spectrum.size
        cells = [
            (_shade(value, highest), column + 0.5 > cut) for column, value in enumerate(values)
        ]
        first = 0
        for (shade, removed), alike in groupby(cells):
            width = len(list(alike))
            yield _Run(
                row=row,
                left=first / _COLUMNS,
                width=width / _COLUMNS,
                shade=shade,
                removed=removed,
            )
            first += width


def _columns(spectrum: SpectrumReport) -> list[float]:
    """Return the values at evenly spaced ranks, in units of their mean."""
    values = []
    for column in range(_COLUMNS):
        rank = (column + 0.5) / _COLUMNS * spectrum.size - 0.5
        index = min(bisect.bisect_left(spectrum.ranks, rank), len(spectrum.ranks) - 1)
        values.append(spectrum.values[index] * spectrum.size)
    return values


def _shade(value: float, highest: float) -> int:
    """Return the shade of a value by powers of ten; 1 is the lightest."""
    if value <= 0.0 or highest <= 0.0:
        return 1
    below = min(math.log10(highest / value) / _DECADES, 1.0)
    return 1 + round((1.0 - below) * (_SHADES - 1))
