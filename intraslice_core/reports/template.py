"""Filling in the templates of this package; whatever is filled in stays text."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def rendered(name: str, **values: object) -> Markup:
    """A template with its values, escaped."""
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
    """A coordinate, to a tenth of a pixel."""
    return f"{number:.1f}".rstrip("0").rstrip(".")
