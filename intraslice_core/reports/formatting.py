"""Tables and templates of report pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


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
    environment.filters["with_code"] = with_code
    return environment


def with_code(text: str) -> Markup:
    """Return a text with the parts between backticks as code; everything is escaped."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )
