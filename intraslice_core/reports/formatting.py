"""Formatting of report pages: quantities such as "31.4 M" and "6 min 12 s", tables, templates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_COUNTS = ("", "K", "M", "B", "T")
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


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


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table whose first column names the row; `links` holds a URL per row, or an empty string."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    links: tuple[str, ...] = ()
    numeric: bool = True
    """True if the other columns contain numbers."""


def rendered(name: str, **values: object) -> Markup:
    """Render a template; its values are escaped."""
    return Markup(_environment().get_template(name).render(values))  # autoescaped


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("intraslice_core.reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters["short"] = short
    return environment


def short(number: float) -> str:
    """Format a coordinate with a tenth of a pixel."""
    return f"{number:.1f}".rstrip("0").rstrip(".")
