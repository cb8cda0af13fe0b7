"""Compression methods by name; each file holds the options of one method."""

from __future__ import annotations

from dataclasses import replace

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


def method_for(name: Method, *, output_norms: bool) -> CompressionMethod:
    """Return a method's options for a model.

    Args:
        name: of the method.
        output_norms: True if norms follow the modules' outputs. They fix the length of every
            contribution, so that no module can make up for earlier errors (docs/method.md,
            section 9): the target is then each module's own output.
    """
    method = METHODS[name]
    return replace(method, dense_target=method.dense_target and not output_norms)


def resolve_allocator(settings: CompressionSettings) -> Allocator:
    """Return the allocator of a compression; `auto` is the method's own."""
    if settings.allocation == "auto":
        return METHODS[settings.method].allocator
    return settings.allocation


__all__ = ["METHODS", "CompressionMethod", "method_for", "resolve_allocator"]
