"""Charts as inline SVG: lines, bars and dots, distinguished by shape as well as by colour.

Colours come from the page's stylesheet, so that they follow the reader's colour scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from markupsafe import Markup

from intraslice_core.reports.formatting import rendered, short

_INTERVALS = 4
"""Approximate number of intervals between ticks."""
_MOST_DECADES = 6
_ROUND = 1e-9
"""Rounding error that is ignored, as a fraction of a tick step."""
_EXPONENT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Labelled value of an axis; `place` is its position in [0, 1]."""

    place: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Linear or logarithmic axis from `low` to `high`."""

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value: 0 at `low` and 1 at `high`."""
        if self.log:
            return _position(math.log10(value), math.log10(self.low), math.log10(self.high))
        return _position(value, self.low, self.high)


def linear_axis(
    label: str, values: Iterable[float], *, include: Sequence[float] = (), unit: float = 1.0
) -> Axis:
    """Return a linear axis that contains all values and `include`; ticks are in `unit`."""
    covered = [*values, *include]
    low, high = min(covered), max(covered)
    if high - low <= _ROUND * abs(high):
        spread = abs(low) / 10 or 1.0
        low, high = low - spread, high + spread
    step = _round_step((high - low) / _INTERVALS)
    first, last = math.floor(low / step + _ROUND), math.ceil(high / step - _ROUND)
    decimals = max(0, -math.floor(math.log10(step / unit) + _ROUND))
    low, high = first * step, last * step
    return Axis(
        label=label,
        low=low,
        high=high,
        ticks=tuple(
            Tick(
                place=_position(index * step, low, high),
                text=_tick_text(index * step / unit, decimals),
            )
            for index in range(first, last + 1)
        ),
    )


def count_axis(label: str, values: Sequence[float]) -> Axis:
    """Return an axis for large numbers, in a unit that the label names."""
    largest = max(values)
    unit, name = next(((unit, name) for unit, name in _UNITS if largest >= unit), (1.0, ""))
    return linear_axis(f"{label}, {name}" if name else label, values, unit=unit)


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis for positive values that span a decade, else a linear axis."""
    if min(values) <= 0.0 or max(values) < 10.0 * min(values):
        return linear_axis(label, values, include=(0.0,))
    first = math.floor(math.log10(min(values)) + _ROUND)
    last = math.ceil(math.log10(max(values)) - _ROUND)
    every = -(-(last - first) // _MOST_DECADES)
    return Axis(
        label=label,
        low=10.0**first,
        high=10.0**last,
        ticks=tuple(
            Tick(place=_position(power, first, last), text=f"10{str(power).translate(_EXPONENT)}")
            for power in range(first, last + 1, every)
        ),
        log=True,
    )


def layer_axis(layers: int) -> Axis:
    """Return an axis with one position per layer and half of one at both ends."""
    every = max(1, round(_round_step(layers / 8)))
    low, high = -0.5, layers - 0.5
    return Axis(
        label="layer",
        low=low,
        high=high,
        ticks=tuple(
            Tick(place=_position(layer, low, high), text=str(layer))
            for layer in range(0, layers, every)
        ),
    )


AxisOf = Callable[[str, Sequence[float]], Axis]


def _position(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def _round_step(rough: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - _ROUND))


def _tick_text(value: float, decimals: int) -> str:
    if decimals > 4:
        return f"{value:.1e}" if value else "0"
    return f"{value:.{decimals}f}".replace("-", "−")  # noqa: RUF001


Style = Literal["lines", "bars", "dots"]

WIDTH, HEIGHT = 440.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 14.0, 26.0, 44.0
_LEGEND = 18.0
"""Height of a row of the legend, in pixels."""
_CHARACTER = 7.2
"""Approximate width of a character, in pixels; the text is not measured."""
_MARKER = 4.0
_MOST_MARKED = 64
"""Largest number of full-size markers on a line; more would hide it."""


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

    def style_class(self, index: int) -> str:
        """Return the class of the series at this place in the stylesheet."""
        return "dense" if self.is_dense else f"s{index}"


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


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Plotting area of the chart, in pixels."""

    left: float
    right: float
    top: float
    bottom: float

    def x(self, axis: Axis, value: float) -> float:
        return self.left + axis.place(value) * (self.right - self.left)

    def y(self, axis: Axis, value: float) -> float:
        return self.bottom - axis.place(value) * (self.bottom - self.top)


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """Marker or bar with its tooltip."""

    path: str
    text: str


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Series in pixel coordinates; `name` is its class in the stylesheet."""

    name: str
    line: str
    marks: list[_Mark]


@dataclass(frozen=True, kw_only=True)
class _LegendEntry:
    """Legend entry of a series; `style` is its class in the stylesheet."""

    x: float
    y: float
    name: str
    mark: str
    style: str


def draw(chart: Chart) -> Markup:
    """Draw the chart as an SVG element for an HTML page."""
    legend = _legend(chart.series) if len(chart.series) > 1 else []
    top = max((entry.y for entry in legend), default=_TOP - 10.0) + 12.0
    frame = _Frame(left=_LEFT, right=WIDTH - _RIGHT, top=top, bottom=HEIGHT - _BOTTOM)
    return rendered(
        "chart.svg.j2",
        chart=chart,
        width=WIDTH,
        height=HEIGHT,
        frame=frame,
        legend=legend,
        series=[
            _Drawn(
                name=series.style_class(index),
                line=_line(chart, series, frame) if chart.style == "lines" else "",
                marks=_marks(chart, index, frame),
            )
            for index, series in enumerate(chart.series)
        ],
        diagonal=_diagonal(chart, frame) if chart.diagonal else "",
        zero=frame.y(chart.y, 0.0) if not chart.y.log and chart.y.low < 0 < chart.y.high else None,
    )


def _legend(series: Sequence[Series]) -> list[_LegendEntry]:
    """Lay out the legend in as many rows as its names need."""
    entries = []
    x, y = _LEFT, _TOP
    for index, drawn in enumerate(series):
        width = 14.0 + _CHARACTER * len(drawn.name)
        if x > _LEFT and x + width > WIDTH - _RIGHT:
            x, y = _LEFT, y + _LEGEND
        mark = _marker(index, x + _MARKER, y + 6.0)
        style = drawn.style_class(index)
        entry = _LegendEntry(x=x + 14.0, y=y + 10.0, name=drawn.name, mark=mark, style=style)
        entries.append(entry)
        x += width + 16.0
    return entries


def _line(chart: Chart, series: Series, frame: _Frame) -> str:
    if chart.curve:
        return _path(series.points, chart, frame)
    runs = groupby(enumerate(series.points), key=lambda indexed: indexed[1].x - indexed[0])
    return " ".join(_path([point for _, point in run], chart, frame) for _, run in runs)


def _path(points: Iterable[Point], chart: Chart, frame: _Frame) -> str:
    return "M" + " L".join(
        f"{short(frame.x(chart.x, point.x))} {short(frame.y(chart.y, point.y))}" for point in points
    )


def _marks(chart: Chart, index: int, frame: _Frame) -> list[_Mark]:
    series = chart.series[index]
    if chart.style == "bars":
        return [
            _Mark(path=_bar(chart, index, point, frame), text=point.text) for point in series.points
        ]
    size = _MARKER if chart.style == "dots" or len(series.points) <= _MOST_MARKED else 1.5
    return [
        _Mark(
            path=_marker(index, frame.x(chart.x, point.x), frame.y(chart.y, point.y), size),
            text=point.text,
        )
        for point in series.points
    ]


def _bar(chart: Chart, index: int, point: Point, frame: _Frame) -> str:
    """Return a bar from zero; the bars of several series stand side by side at their x."""
    width = 0.8 * (frame.right - frame.left) / (chart.x.high - chart.x.low) / len(chart.series)
    left = frame.x(chart.x, point.x) + (index - len(chart.series) / 2) * width
    zero, end = (frame.y(chart.y, value) for value in (0.0, point.y))
    return f"M{short(left)} {short(zero)}V{short(end)}H{short(left + width)}V{short(zero)}Z"


def _marker(index: int, x: float, y: float, size: float = _MARKER) -> str:
    """Return the marker of a series: circle, square, triangle or diamond."""
    center, r, whole, tip = (
        f"{short(x)} {short(y)}",
        short(size),
        short(2 * size),
        short(1.5 * size),
    )
    return (
        f"M{center}m-{r} 0a{r} {r} 0 1 0 {whole} 0a{r} {r} 0 1 0 -{whole} 0z",
        f"M{center}m-{r} -{r}h{whole}v{whole}h-{whole}z",
        f"M{center}m0 -{r}l{r} {whole}h-{whole}z",
        f"M{center}m0 -{tip}l{tip} {tip}l-{tip} {tip}l-{tip} -{tip}z",
    )[index % 4]


def _diagonal(chart: Chart, frame: _Frame) -> str:
    low, high = max(chart.x.low, chart.y.low), min(chart.x.high, chart.y.high)
    ends = (Point(x=value, y=value, text="") for value in (low, high))
    return _path(ends, chart, frame) if low < high else ""
