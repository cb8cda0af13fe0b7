"""Requirements of each target on shapes, methods and families; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from intraslice_core.config import (
    COMPRESSED_MODEL_TYPES,
    SUPPORTED_MODEL_TYPES,
    Allocation,
    CompressionSettings,
    Method,
    Target,
)
from intraslice_core.errors import ConfigurationError
from intraslice_core.plan import (
    ALL_DIMENSIONS,
    ATTENTION_DIMENSIONS,
    FREE,
    ONLY_DENSE,
    Module,
    ShapeConstraint,
)

ONE_STEP = 0.02
"""Budget tolerance where all layers change together: one rounding step is large in small models."""

_CONSTRAINED_ALLOCATIONS: tuple[Allocation, ...] = ("auto", "uniform", "lagrangian")
"""Allocations that support constraints; the Fisher allocators of the paper do not."""


@dataclass(frozen=True, kw_only=True)
class TargetDemands:
    """Requirements of one target; the defaults are those of `research`."""

    shapes: ShapeConstraint = FREE
    model_types: tuple[str, ...] = SUPPORTED_MODEL_TYPES + COMPRESSED_MODEL_TYPES
    methods: tuple[Method, ...] = ("intraslice_plus", "intraslice", "magnitude")
    allocations: tuple[Allocation, ...] = ("auto", "uniform", "fisher", "fisher_pca", "lagrangian")
    alike: bool = False
    """True if all heads of all layers keep the same rotary pairs."""
    removable: frozenset[Module] = frozenset({"attention", "mlp"})
    """Modules that may be removed from a layer."""
    gguf: bool = False
    """True if llama.cpp runs models of the target."""

    def constraint(self, removable: frozenset[Module]) -> ShapeConstraint:
        """Return the shape constraint with the modules that may be removed as a whole."""
        return replace(self.shapes, removable=removable & self.removable)


DEMANDS: Mapping[Target, TargetDemands] = MappingProxyType(
    {
        "research": TargetDemands(),
        "adaptive": TargetDemands(
            shapes=ShapeConstraint(
                multiples=MappingProxyType(dict.fromkeys(ATTENTION_DIMENSIONS, ONLY_DENSE)),
                attention_stays_in=frozenset({0}),
                tolerance=ONE_STEP,
            ),
            # DeciLM is a Llama, and its readers support biases on all four projections or on none.
            model_types=("llama", "mistral", "nemotron-nas"),
            methods=("intraslice_plus", "magnitude"),
            allocations=_CONSTRAINED_ALLOCATIONS,
            removable=frozenset({"attention"}),
            gguf=True,
        ),
        "stock": TargetDemands(
            shapes=ShapeConstraint(
                same_across_layers=ALL_DIMENSIONS, qk_equals_value=True, tolerance=ONE_STEP
            ),
            # These families support any head_dim. Others do not fit: norms on q and k differ
            # between heads once pairs are removed, and fused projections or partial rotary
            # embedding do not allow a subset of the pairs.
            model_types=("llama", "mistral", "qwen2"),
            methods=("intraslice_plus",),
            allocations=_CONSTRAINED_ALLOCATIONS,
            alike=True,
            gguf=True,
        ),
    }
)


def require_target(settings: CompressionSettings, model_type: str) -> TargetDemands:
    """Return the requirements of the target after checking model type and settings against them.

    Raises:
        ConfigurationError: naming the unsupported setting and the supported values.
    """
    demands = DEMANDS[settings.target]
    if model_type not in demands.model_types:
        raise ConfigurationError(
            f"target {settings.target} does not support {model_type} models",
            field="compression.target",
            hint=f"it supports {', '.join(demands.model_types)}; target research supports all",
        )
    if settings.method not in demands.methods:
        raise ConfigurationError(
            f"target {settings.target} does not support method {settings.method}",
            field="compression.method",
            hint=f"use {' or '.join(demands.methods)}, or target research",
        )
    if settings.allocation not in demands.allocations:
        raise ConfigurationError(
            f"target {settings.target} does not support allocation {settings.allocation}",
            field="compression.allocation",
            hint=f"use {' or '.join(demands.allocations)}, or target research",
        )
    if any(export != "safetensors" for export in settings.exports) and not demands.gguf:
        raise ConfigurationError(
            f"target {settings.target} has no GGUF export, because llama.cpp cannot run its models",
            field="compression.exports",
            hint="use target stock or adaptive, or remove the gguf exports",
        )
    return demands
