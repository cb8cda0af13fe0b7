"""A table of a page: texts in rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """The first column names the row; `links` holds where that name leads, or nothing."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    links: tuple[str, ...] = ()
    numeric: bool = True
    """Whether the other columns are numbers."""
