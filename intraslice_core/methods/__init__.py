"""Compression methods by name; each file holds the options of one method."""

from __future__ import annotations

from intraslice_core.config import Allocator, CompressionSettings, Method
from intraslice_core.methods.intraslice import INTRASLICE
from intraslice_core.methods.intraslice_plus import INTRASLICE_PLUS
from intraslice_core.methods.magnitude import MAGNITUDE
from intraslice_core.methods.method import CompressionMethod

METHODS: dict[Method, CompressionMethod] = {
    "intraslice_plus": INTRASLICE_PLUS,
    "intraslice": INTRASLICE,
    "magnitude": MAGNITUDE,
}


def resolve_allocator(settings: CompressionSettings) -> Allocator:
    """Return the allocator of a compression; `auto` is the method's own."""
    if settings.allocation == "auto":
        return METHODS[settings.method].allocator
    return settings.allocation


__all__ = ["METHODS", "CompressionMethod", "resolve_allocator"]
