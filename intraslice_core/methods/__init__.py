"""Compression methods by name; each file holds the options of one method.

Names and descriptions are in `config.methods`, because settings may not import this package.
"""

from __future__ import annotations

from dataclasses import replace

from intraslice_core.config import (
    AUTO,
    METHOD_DESCRIPTIONS,
    Allocator,
    CompressionConfig,
    CompressionSettings,
    Method,
    MethodChoice,
    Target,
)
from intraslice_core.methods.disp import DISP
from intraslice_core.methods.flap import FLAP
from intraslice_core.methods.fusegpt import FUSEGPT
from intraslice_core.methods.intraslice import INTRASLICE
from intraslice_core.methods.intraslice_plus import INTRASLICE_PLUS
from intraslice_core.methods.magnitude import MAGNITUDE
from intraslice_core.methods.method import (
    CONSTRAINED_ALLOCATIONS,
    CompressionMethod,
    LayerRemoval,
    UnitRemoval,
    UnitScore,
)
from intraslice_core.methods.modegpt import MODEGPT
from intraslice_core.methods.shortgpt import SHORTGPT
from intraslice_core.methods.slicegpt import SLICEGPT
from intraslice_core.methods.spp import SPP
from intraslice_core.methods.transact import TRANSACT
from intraslice_core.methods.two_ssp import TWO_SSP
from intraslice_core.methods.wanda_sp import WANDA_SP

METHODS: dict[MethodChoice, CompressionMethod] = {
    "intraslice_plus": INTRASLICE_PLUS,
    "intraslice": INTRASLICE,
    "magnitude": MAGNITUDE,
    "flap": FLAP,
    "wanda_sp": WANDA_SP,
    "2ssp": TWO_SSP,
    "modegpt": MODEGPT,
    "transact": TRANSACT,
    "shortgpt": SHORTGPT,
    "fusegpt": FUSEGPT,
    "slicegpt": SLICEGPT,
    "spp": SPP,
    "disp": DISP,
}
"""Options by method; `auto` has none, because a tournament puts a method in its place."""


def fixed_method(settings: CompressionSettings) -> Method:
    """Return the method of settings that name one.

    Raises:
        ValueError: for `auto`, which stands for no method until its tournament has ended.
    """
    if settings.method == AUTO:
        raise ValueError("method auto has no options of its own: run its tournament first")
    return settings.method


def method_for(name: MethodChoice, *, output_norms: bool) -> CompressionMethod:
    """Return a method's options for a model.

    Args:
        name: of the method.
        output_norms: True if norms follow the modules' outputs. They fix the length of every
            contribution, so that no module can make up for earlier errors (docs/method.md,
            section 9): the target is then each module's own output.
    """
    method = METHODS[name]
    return replace(method, dense_target=method.dense_target and not output_norms)


def refit_warnings(name: MethodChoice, *, output_norms: bool) -> list[str]:
    """Return a warning if a method that refits the layers after removed ones cannot.

    Args:
        name: of the method.
        output_norms: as for `method_for`.
    """
    method = METHODS[name]
    if method.layers is None or not method.dense_target or not output_norms:
        return []
    return [
        f"{name} refits nothing here: norms follow the modules' outputs and fix their length, so "
        "that no layer can make up for a removed one"
    ]


def methods_for(target: Target) -> tuple[Method, ...]:
    """Return the names of the methods that have a target."""
    return tuple(name for name in METHOD_DESCRIPTIONS if target in METHODS[name].targets)


def adds_output_biases(config: CompressionConfig) -> bool:
    """Return whether the result has biases of output projections that the dense model may lack.

    Only the architecture of `research` can have them.
    """
    units = METHODS[config.method].units
    compensates = units is not None and units.bias_compensation
    return compensates and config.target == "research" and config.ratio != 0.0


def resolve_allocator(settings: CompressionSettings) -> Allocator:
    """Return the allocator of a compression; `auto` is the method's own."""
    if settings.allocation == "auto":
        method = METHODS[settings.method]
        trained = None if settings.mask_training is None else method.trained_allocator
        return trained or method.allocator
    return settings.allocation


__all__ = [
    "CONSTRAINED_ALLOCATIONS",
    "METHODS",
    "CompressionMethod",
    "LayerRemoval",
    "UnitRemoval",
    "UnitScore",
    "adds_output_biases",
    "fixed_method",
    "method_for",
    "methods_for",
    "refit_warnings",
    "resolve_allocator",
]
