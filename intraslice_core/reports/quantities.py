"""Quantities as people read them, such as "31.4 M", "+35 %" and "6 min 12 s"."""

from __future__ import annotations

import math

_COUNTS = ("", "K", "M", "B", "T")
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_LARGEST_PERCENT = 10.0
"""Factor from which a growth is written as a factor instead of in percent."""


def count(number: float) -> str:
    """Format a count with three digits; 10^9 is a B, as in model names."""
    return _scaled(number, 1000, _COUNTS)


def size(number: float) -> str:
    """Format a number of bytes in units of powers of 1024."""
    return _scaled(number, 1024, _SIZES)


def times(ratio: float) -> str:
    """Format a factor, with enough digits to tell it from 1."""
    return f"{ratio:,.{0 if ratio >= 1000 else 1 if ratio >= 100 else 2}f}×"  # noqa: RUF001


def percent(fraction: float) -> str:
    """Format a fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f} %"


def change(before: float, after: float) -> str:
    """Format the relative change from `before` to `after`."""
    growth = after / before - 1.0
    return f"{'+' if growth > 0 else '−' if growth < 0 else '±'}{percent(abs(growth))}"  # noqa: RUF001


def short_change(ratio: float) -> str:
    """Format a ratio as a relative change in few characters: "+35 %", "−4.2 %" or "12×"."""  # noqa: RUF002
    if ratio >= _LARGEST_PERCENT:
        return f"{ratio:,.0f}×"  # noqa: RUF001
    growth = 100.0 * (ratio - 1.0)
    magnitude = f"{abs(growth):.0f}" if abs(growth) >= 10.0 else f"{abs(growth):.1f}"
    sign = "±" if float(magnitude) == 0.0 else "+" if growth > 0 else "−"  # noqa: RUF001
    return f"{sign}{magnitude} %"


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if value != 0.0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def mean_and_error(value: float, stderr: float | None) -> str:
    """Format a mean with its standard error, if it has one."""
    return number(value) if stderr is None else f"{number(value)} ± {number(stderr)}"


def duration(seconds: float) -> str:
    """Format a duration in its two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def duration_range(low: float, high: float) -> str:
    """Format a range of estimated durations: "12 to 20 minutes"; one number where both agree."""
    (least, least_unit), (most, most_unit) = _rounded(low), _rounded(high)
    if most < 10 and most_unit == "second":
        return "a few seconds"
    if (least, least_unit) == (most, most_unit):
        return f"about {_with_unit(most, most_unit)}"
    if least_unit == most_unit:
        return f"{least:g} to {_with_unit(most, most_unit)}"
    return f"{_with_unit(least, least_unit)} to {_with_unit(most, most_unit)}"


def _rounded(seconds: float) -> tuple[float, str]:
    """Return a duration in one unit, as exactly as an estimate is."""
    if seconds < 10:
        return max(round(seconds), 1), "second"
    if seconds < 55:
        return round(seconds, -1), "second"
    if seconds < 5400:
        return round(seconds / 60), "minute"
    unit, name = (3600, "hour") if seconds < 36 * 3600 else (86_400, "day")
    number = seconds / unit
    return round(number, 1 if number < 10 else 0), name


def _with_unit(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while power < len(units) - 1 and round(abs(number) / base**power) >= base:
        power += 1
    if power == 0:
        return f"{number:.0f} {units[0]}".rstrip()
    scaled = number / base**power
    digits = max(0, 2 - math.floor(math.log10(abs(scaled))))
    return f"{scaled:.{digits}f} {units[power]}"
