"""How long what a job has made stays."""

from __future__ import annotations

from datetime import timedelta


def lifetime(days: float) -> timedelta | None:
    """None: for ever."""
    return timedelta(days=days) if days > 0 else None
