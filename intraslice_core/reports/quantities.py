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


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while power < len(units) - 1 and round(abs(number) / base**power) >= base:
        power += 1
    if power == 0:
        return f"{number:.0f} {units[0]}".rstrip()
    scaled = number / base**power
    digits = max(0, 2 - math.floor(math.log10(abs(scaled))))
    return f"{scaled:.{digits}f} {units[power]}"
