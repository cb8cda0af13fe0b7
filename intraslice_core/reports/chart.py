"""Charts as inline SVG, drawn by matplotlib: lines, bars and dots.

Series differ by shape as well as by colour. Colours are variables of the page's stylesheet, so that
a chart follows the reader's colour scheme; every point has a tooltip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup

from intraslice_core.reports.quantities import count
from intraslice_core.reports.svg import (
    DENSE,
    FAINT,
    SERIES,
    Description,
    new_figure,
    page_element,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as DrawnAxis
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 440.0, 270.0
"""Size of a chart in pixels."""
_INTERVALS = 4
"""Largest number of intervals between ticks."""
_LAYER_INTERVALS = 8
_DECADE = 10.0
_CHARACTER, _LEGEND_HANDLE = 6.5, 34.0
"""Approximate widths of a character and of the rest of a legend entry, in pixels."""
_MARKERS = "os^DvP<>Xphd8*"
_MARKER, _SMALL_MARKER = 6.0, 2.0
_MOST_MARKED = 64
"""Largest number of full-size markers on a line; more would hide it."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Axis that contains the values from `low` to `high`; `label` names its quantity and unit."""

    label: str
    low: float
    high: float
    kind: Literal["linear", "log", "counts", "layers"] = "linear"


def linear_axis(label: str, values: Iterable[float], *, include: Sequence[float] = ()) -> Axis:
    """Return a linear axis that contains all values and `include`."""
    covered = [*values, *include]
    return Axis(label=label, low=min(covered), high=max(covered))


def count_axis(label: str, values: Sequence[float]) -> Axis:
    """Return a linear axis for large numbers, with ticks such as 134.5M."""
    return Axis(label=label, low=min(values), high=max(values), kind="counts")


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis for positive values that span a decade, else a linear axis."""
    if min(values) <= 0.0 or max(values) < _DECADE * min(values):
        return linear_axis(label, values, include=(0.0,))
    return Axis(label=label, low=min(values), high=max(values), kind="log")


def layer_axis(layers: int) -> Axis:
    """Return an axis with one position per layer and half of one at both ends."""
    return Axis(label="layer", low=-0.5, high=layers - 0.5, kind="layers")


AxisOf = Callable[[str, Sequence[float]], Axis]
Style = Literal["lines", "bars", "dots"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """Data point with its tooltip."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one series; that of the original model has a colour of its own."""

    name: str
    points: tuple[Point, ...]
    is_dense: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Contents of a chart; `diagonal` adds the line of equal x and y.

    A line has a gap where x increases by more than 1, unless it is a `curve`.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    style: Style
    diagonal: bool = False
    curve: bool = False


def draw(chart: Chart) -> Markup:
    """Draw the chart as an SVG element for an HTML page."""
    with new_figure(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        for index, series in enumerate(chart.series):
            _draw_series(axes, chart, series, index)
        _set_axes(axes, chart)
        _add_legend(figure, chart.series)
        description = Description(
            title=chart.title, text=chart.description, tooltips=dict(_tooltips(chart))
        )
        return page_element(figure, description)


# -- drawing -------------------------------------------------------------------------------------


def _draw_series(axes: Axes, chart: Chart, series: Series, index: int) -> None:
    """Draw one series; its group in the SVG is named after its place, for the tooltips."""
    colour = DENSE if series.is_dense else SERIES[index % len(SERIES)]
    if chart.style == "bars":
        width = 0.8 / len(chart.series)
        left = [point.x + (index - len(chart.series) / 2 + 0.5) * width for point in series.points]
        heights = [point.y for point in series.points]
        bars = axes.bar(left, heights, width, color=colour, label=series.name)
        for number, bar in enumerate(bars):
            bar.set_gid(_bar_name(index, number))
        return
    few = chart.style == "dots" or len(series.points) <= _MOST_MARKED
    drawn = axes.plot(
        *_coordinates(series, gaps=chart.style == "lines" and not chart.curve),
        color=colour,
        label=series.name,
        linestyle="none" if chart.style == "dots" else "solid",
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=_MARKER if few else _SMALL_MARKER,
        clip_on=False,
    )
    drawn[0].set_gid(_series_name(index))


def _coordinates(series: Series, *, gaps: bool) -> tuple[list[float], list[float]]:
    """Return x and y of the points, with a not-a-number in every gap of the line."""
    x: list[float] = []
    y: list[float] = []
    for point in series.points:
        if gaps and x and point.x > x[-1] + 1.0:
            x.append(float("nan"))
            y.append(float("nan"))
        x.append(point.x)
        y.append(point.y)
    return x, y


def _set_axes(axes: Axes, chart: Chart) -> None:
    """Set limits, ticks and labels; the label of y stands above the chart, to be read upright."""
    axes.set_xlabel(chart.x.label)
    axes.set_title(chart.y.label)
    if chart.y.low < 0.0 < chart.y.high:
        axes.axhline(0.0, color=FAINT, linewidth=0.8)
    if chart.diagonal:
        ends = (max(chart.x.low, chart.y.low), min(chart.x.high, chart.y.high))
        axes.plot(ends, ends, color=FAINT, linestyle="dashed", linewidth=1.0, zorder=0.5)
    for drawn, axis, set_scale in (
        (axes.xaxis, chart.x, axes.set_xscale),
        (axes.yaxis, chart.y, axes.set_yscale),
    ):
        set_scale("log" if axis.kind == "log" else "linear")
        _set_ticks(drawn, axis)
    axes.update_datalim(((chart.x.low, chart.y.low), (chart.x.high, chart.y.high)))
    axes.autoscale_view()
    if chart.x.kind == "layers":
        axes.set_xlim(chart.x.low, chart.x.high)


def _set_ticks(drawn: DrawnAxis, axis: Axis) -> None:
    from matplotlib import ticker

    if axis.kind == "log":
        drawn.set_minor_locator(ticker.NullLocator())
    else:
        layers = axis.kind == "layers"
        intervals = _LAYER_INTERVALS if layers else _INTERVALS
        drawn.set_major_locator(
            ticker.MaxNLocator(
                intervals, steps=[1, 2, 5, 10], integer=layers, min_n_ticks=1 if layers else 2
            )
        )
    if axis.kind == "counts":
        drawn.set_major_formatter(ticker.FuncFormatter(lambda value, _: count(round(value))))
    else:
        drawn.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))


def _add_legend(figure: Figure, series: Sequence[Series]) -> None:
    """Name several series above the chart, in as many rows as the names need."""
    if len(series) < 2:
        return
    widest = max(_LEGEND_HANDLE + _CHARACTER * len(drawn.name) for drawn in series)
    columns = max(1, min(len(series), int(WIDTH / widest)))
    figure.legend(loc="outside upper left", ncols=columns)


# -- tooltips ------------------------------------------------------------------------------------


def _tooltips(chart: Chart) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the texts of all points by the name of the bar or series that was drawn for them."""
    for index, series in enumerate(chart.series):
        texts = tuple(point.text for point in series.points)
        if chart.style == "bars":
            yield from ((_bar_name(index, number), (text,)) for number, text in enumerate(texts))
        else:
            yield _series_name(index), texts


def _series_name(index: int) -> str:
    return f"series-{index}"


def _bar_name(index: int, number: int) -> str:
    return f"bar-{index}-{number}"
