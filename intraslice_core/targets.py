"""What each target demands of shapes, methods and families, for those who must not load torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from intraslice_core.allocation.constraint import (
    ALL_DIMENSIONS,
    FREE,
    Module,
    ShapeConstraint,
)
from intraslice_core.config import SUPPORTED_MODEL_TYPES, CompressionSettings, Method, Target
from intraslice_core.errors import ConfigurationError

ONE_STEP = 0.02
"""Of the budget: where all layers change together, one rounding step is much of a small model."""


@dataclass(frozen=True, kw_only=True)
class TargetDemands:
    """One target's; the defaults are those of `research`."""

    shapes: ShapeConstraint = FREE
    model_types: tuple[str, ...] = SUPPORTED_MODEL_TYPES
    methods: tuple[Method, ...] = ("intraslice", "paper", "magnitude")
    alike: bool = False
    """All layers keep the same rotary pairs, in all heads."""

    def constraint(self, removable: frozenset[Module]) -> ShapeConstraint:
        """The same, with what a cap allows to go whole."""
        return replace(self.shapes, removable=removable)


DEMANDS: Mapping[Target, TargetDemands] = MappingProxyType(
    {
        "research": TargetDemands(),
        "stock": TargetDemands(
            shapes=ShapeConstraint(
                same_across_layers=ALL_DIMENSIONS, qk_equals_value=True, tolerance=ONE_STEP
            ),
            # Families whose own classes take any head_dim, one norm a layer and half-split rotary
            # pairs: q/k norms differ by head once pairs are gone, fused or partly rotating heads
            # have no place for the pairs that stay.
            model_types=("llama", "mistral", "qwen2"),
            methods=("intraslice",),
            alike=True,
        ),
    }
)


def require_target(settings: CompressionSettings, model_type: str) -> TargetDemands:
    """What the target demands, if it can have this model by this method.

    Raises:
        ConfigurationError: naming the setting at fault and what is possible.
    """
    demands = DEMANDS[settings.target]
    if model_type not in demands.model_types:
        raise ConfigurationError(
            f"target {settings.target} is not built for {model_type} models",
            field="compression.target",
            hint=f"it is for {', '.join(demands.model_types)}; research is for all",
        )
    if settings.method not in demands.methods:
        raise ConfigurationError(
            f"target {settings.target} is not built by method {settings.method}",
            field="compression.method",
            hint=f"use {' or '.join(demands.methods)}, or target research",
        )
    return demands
