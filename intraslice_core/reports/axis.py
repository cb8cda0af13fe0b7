"""Axes of charts: from values to places along a line, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_INTERVALS = 4
"""Of ticks, about."""
_MOST_DECADES = 6
_ROUND = 1e-9
"""Of a step: what counts as a rounding error."""
_EXPONENT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A value that is named; `place` in [0, 1]."""

    place: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From `low` to `high`, evenly or by powers of ten."""

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value is, 0 at `low` and 1 at `high`."""
        if self.log:
            return _part(math.log10(value), math.log10(self.low), math.log10(self.high))
        return _part(value, self.low, self.high)


def linear_axis(
    label: str, values: Iterable[float], *, include: Sequence[float] = (), unit: float = 1.0
) -> Axis:
    """Around all values and those to include; ticks are written in `unit`."""
    among = [*values, *include]
    low, high = min(among), max(among)
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
                place=_part(index * step, low, high),
                text=_tick_text(index * step / unit, decimals),
            )
            for index in range(first, last + 1)
        ),
    )


def count_axis(label: str, values: Sequence[float]) -> Axis:
    """Of large numbers, in the unit that fits; the label says which."""
    unit, name = next((one for one in _UNITS if max(values) >= one[0]), (1.0, ""))
    return linear_axis(f"{label}, {name}" if name else label, values, unit=unit)


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """By powers of ten where the values span one and allow it, else evenly."""
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
            Tick(place=_part(power, first, last), text=f"10{str(power).translate(_EXPONENT)}")
            for power in range(first, last + 1, every)
        ),
        log=True,
    )


def layer_axis(layers: int) -> Axis:
    """One place a layer, half of one at both ends."""
    every = max(1, round(_round_step(layers / 8)))
    low, high = -0.5, layers - 0.5
    return Axis(
        label="layer",
        low=low,
        high=high,
        ticks=tuple(
            Tick(place=_part(layer, low, high), text=str(layer))
            for layer in range(0, layers, every)
        ),
    )


AxisOf = Callable[[str, Sequence[float]], Axis]


def _part(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - _ROUND))


def _tick_text(value: float, decimals: int) -> str:
    if decimals > 4:
        return f"{value:.1e}" if value else "0"
    return f"{value:.{decimals}f}".replace("-", "−")  # noqa: RUF001
