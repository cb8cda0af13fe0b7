"""SVG plots of all layers: the retained sizes, and the spectra by which dimensions were removed."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.reports.formatting import rendered, short
from intraslice_core.reports.quantities import percent
from intraslice_core.reports.references import model_name
from intraslice_core.reports.schema import CompressionReport, SpectrumReport


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Space around the plotting area, in pixels."""

    left: float
    right: float
    top: float
    bottom: float


def _render_plot(
    template: str, margins: Margins, size: tuple[float, float], **values: object
) -> Markup:
    """Render a plot's template with the edges of its plotting area and its total size.

    Args:
        template: file name of the template.
        margins: space around the plotting area.
        size: width and height of the plotting area, in pixels.
        **values: further values of the template, which replace the computed ones.
    """
    width, height = size
    edges: dict[str, object] = {
        "left": margins.left,
        "right": margins.left + width,
        "bottom": margins.top + height,
        "width": margins.left + width + margins.right,
        "height": margins.top + height + margins.bottom,
    }
    return rendered(template, **(edges | values))


def _labelled_layers(layers: int, most: int) -> range:
    """Return the evenly spaced layers that are labelled, at most `most`."""
    return range(0, layers, -(-layers // most))


# -- retained sizes ------------------------------------------------------------------------------

SHAPE_ROW = 84.0
"""Height of a row of bars, in pixels."""
_SHAPE_GAP = 22.0
"""Space below a row of bars, in pixels."""
_SHAPE_MARGINS = Margins(left=128.0, right=16.0, top=58.0, bottom=40.0)
_WIDEST_BAR = 22.0
_NARROWEST_PLOT = 480.0
_MOST_SHAPE_LABELS = 16
_Size = Callable[[LayerPlan], int]
_SIZE: dict[str, _Size] = {
    "query heads": lambda layer: layer.num_attention_heads,
    "rotary pairs": lambda layer: layer.qk_pairs,
    "value dims": lambda layer: layer.v_head_dim,
    "MLP width": lambda layer: layer.intermediate_size,
}
_COLOURS = ("#4477aa", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#ee6677")
"""Row colours, distinguishable with every kind of colour vision; they recur after the last."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Size of one layer in one dimension; a removed one is drawn as a cross."""

    x: float
    y: float
    height: float
    text: str
    removed: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dimension in all layers."""

    name: str
    dense: int
    top: float
    colour: str
    bars: tuple[Bar, ...]


def shape_plot(report: CompressionReport, *, inline: bool = False) -> Markup:
    """Plot the retained fractions, with one row per dimension and one bar per layer.

    Args:
        report: report of the compression.
        inline: for an HTML page, whose stylesheet may replace the colours of the classes.

    Returns:
        An SVG document, or an SVG element where `inline`.
    """
    layers = len(report.plan.layers)
    step = max(_NARROWEST_PLOT / layers, 6.0)
    step = min(step, _WIDEST_BAR * 1.25) if layers > 1 else _WIDEST_BAR
    rows = _shape_rows(report, step)
    left = _SHAPE_MARGINS.left
    return _render_plot(
        "shape_plot.svg.j2",
        _SHAPE_MARGINS,
        (layers * step, len(rows) * (SHAPE_ROW + _SHAPE_GAP)),
        inline=inline,
        title=f"{model_name(report.model)}: retained size by layer",
        subtitle=_shape_subtitle(report),
        rows=rows,
        ticks=[
            (left + (layer + 0.5) * step, layer)
            for layer in _labelled_layers(layers, _MOST_SHAPE_LABELS)
        ],
        width=left + max(layers * step, _NARROWEST_PLOT) + _SHAPE_MARGINS.right,
        bar_width=0.8 * step,
        row_height=SHAPE_ROW,
    )


def _shape_rows(report: CompressionReport, step: float) -> list[Row]:
    dense = report.geometry.dense_layer()
    rows = []
    for index, (name, size) in enumerate(_sizes(report).items()):
        top = _SHAPE_MARGINS.top + index * (SHAPE_ROW + _SHAPE_GAP)
        rows.append(
            Row(
                name=name,
                dense=size(dense),
                top=top,
                colour=_COLOURS[index % len(_COLOURS)],
                bars=_bars(report.plan, (name, size), size(dense), (top, step)),
            )
        )
    return rows


def _sizes(report: CompressionReport) -> dict[str, _Size]:
    """Return the sizes that are plotted; those in the residual stream only where some are cut."""

    def size_of(label: str) -> _Size:
        return lambda layer: report.plan.residual_sizes(layer, report.geometry)[label]

    labels = report.plan.residual_sizes(report.geometry.dense_layer(), report.geometry)
    return _SIZE | {label: size_of(label) for label in labels}


def _bars(
    plan: ModelPlan, named: tuple[str, _Size], dense: int, place: tuple[float, float]
) -> tuple[Bar, ...]:
    (name, size_of), (top, step) = named, place
    bars = []
    for index, layer in enumerate(plan.layers):
        size = size_of(layer)
        height = SHAPE_ROW * size / dense
        bars.append(
            Bar(
                x=_SHAPE_MARGINS.left + (index + 0.1) * step,
                y=top + SHAPE_ROW - height,
                height=height,
                text=f"layer {index}: {size} of {dense} {name}",
                removed=size == 0,
            )
        )
    return tuple(bars)


def _shape_subtitle(report: CompressionReport) -> str:
    allocator = f", allocated by {report.allocation.allocator}" if report.allocation else ""
    return f"{report.removed_fraction:.1%} removed by {report.method}{allocator}"


# -- spectra -------------------------------------------------------------------------------------

SPECTRUM_WIDTH = 440.0
"""Total width of a spectrum plot, in pixels."""
SPECTRUM_MARGINS = Margins(left=40.0, right=18.0, top=22.0, bottom=40.0)
_COLUMNS = 40
_SHADES = 8
_DECADES = 3.0
"""Range of the shades in powers of ten; smaller values get the lightest shade."""
_HIGHEST_ROW, _LOWEST_ROW = 14.0, 5.0
"""Limits of a row's height, in pixels."""
_TALLEST_PLOT = 230.0
_MOST_SPECTRUM_LABELS = 12


@dataclass(frozen=True, kw_only=True)
class LayerSpectrum:
    """Spectrum of one layer, drawn as a row."""

    layer: int
    spectrum: SpectrumReport


@dataclass(frozen=True, kw_only=True)
class _SpectrumRow:
    layer: int
    top: float
    cut: float
    text: str
    labelled: bool


@dataclass(frozen=True, kw_only=True)
class _Shade:
    """All cells of one shade, as a single path, so that plots of many layers stay small."""

    level: int
    removed: bool
    path: str


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
    width = SPECTRUM_WIDTH - SPECTRUM_MARGINS.left - SPECTRUM_MARGINS.right
    labelled = _labelled_layers(len(layers), _MOST_SPECTRUM_LABELS)
    rows = [
        _SpectrumRow(
            layer=layer.layer,
            top=SPECTRUM_MARGINS.top + index * row_height,
            cut=SPECTRUM_MARGINS.left + width * layer.spectrum.kept / layer.spectrum.size,
            text=row_text(layer),
            labelled=index in labelled,
        )
        for index, layer in enumerate(layers)
    ]
    return _render_plot(
        "spectrum_plot.svg.j2",
        SPECTRUM_MARGINS,
        (width, len(layers) * row_height),
        title=title,
        description=description,
        row_height=row_height,
        rows=rows,
        shades=_shades(layers, row_height, width),
        levels=_SHADES,
    )


def row_text(layer: LayerSpectrum) -> str:
    """Describe a row in words."""
    spectrum = layer.spectrum
    return (
        f"layer {layer.layer}: {spectrum.kept:,} of {spectrum.size:,} retained, "
        f"{percent(spectrum.kept_share)} of the sum"
    )


def _shades(layers: Sequence[LayerSpectrum], row_height: float, width: float) -> list[_Shade]:
    columns = [_columns(layer.spectrum) for layer in layers]
    highest = max(max(row) for row in columns)
    step = width / _COLUMNS
    shape = f"h{short(step)}v{short(row_height)}h-{short(step)}z"
    paths: dict[tuple[int, bool], list[str]] = {}
    for index, (layer, row) in enumerate(zip(layers, columns, strict=True)):
        y = SPECTRUM_MARGINS.top + index * row_height
        for column, value in enumerate(row):
            removed = (column + 0.5) / _COLUMNS > layer.spectrum.kept / layer.spectrum.size
            cell = f"M{short(SPECTRUM_MARGINS.left + column * step)} {short(y)}{shape}"
            paths.setdefault((_level(value, highest), removed), []).append(cell)
    return [
        _Shade(level=level, removed=removed, path="".join(cells))
        for (level, removed), cells in sorted(paths.items())
    ]


def _columns(spectrum: SpectrumReport) -> list[float]:
    """Return the values at evenly spaced ranks, in units of their mean."""
    values = []
    for column in range(_COLUMNS):
        rank = (column + 0.5) / _COLUMNS * spectrum.size - 0.5
        index = min(bisect.bisect_left(spectrum.ranks, rank), len(spectrum.ranks) - 1)
        values.append(spectrum.values[index] * spectrum.size)
    return values


def _level(value: float, highest: float) -> int:
    """Return the shade of a value by powers of ten; 1 is the lightest."""
    if value <= 0.0 or highest <= 0.0:
        return 1
    below = min(math.log10(highest / value) / _DECADES, 1.0)
    return 1 + round((1.0 - below) * (_SHADES - 1))
