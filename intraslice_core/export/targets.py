"""What each target demands of shapes, methods and families, for those who must not load torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from intraslice_core.config import (
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
"""Of the budget: where all layers change together, one rounding step is much of a small model."""


_OF_CURVES: tuple[Allocation, ...] = ("auto", "uniform", "lagrangian")
"""Those that keep to constraints; the paper's estimator knows none."""


@dataclass(frozen=True, kw_only=True)
class TargetDemands:
    """One target's; the defaults are those of `research`."""

    shapes: ShapeConstraint = FREE
    model_types: tuple[str, ...] = SUPPORTED_MODEL_TYPES
    methods: tuple[Method, ...] = ("intraslice_plus", "intraslice", "magnitude")
    allocations: tuple[Allocation, ...] = ("auto", "uniform", "fisher", "fisher_pca", "lagrangian")
    alike: bool = False
    """All layers keep the same rotary pairs, in all heads."""
    removable: frozenset[Module] = frozenset({"attention", "mlp"})
    """Modules that a layer need not have."""
    gguf: bool = False
    """Whether llama.cpp runs such models."""

    def constraint(self, removable: frozenset[Module]) -> ShapeConstraint:
        """The same, with what a cap allows to go whole."""
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
            # DeciLM is a Llama; of biases its readers know those of all four projections or none.
            model_types=("llama", "mistral"),
            methods=("intraslice_plus", "magnitude"),
            allocations=_OF_CURVES,
            removable=frozenset({"attention"}),
            gguf=True,
        ),
        "stock": TargetDemands(
            shapes=ShapeConstraint(
                same_across_layers=ALL_DIMENSIONS, qk_equals_value=True, tolerance=ONE_STEP
            ),
            # Families whose own classes take any head_dim, one norm a layer and half-split rotary
            # pairs: q/k norms differ by head once pairs are gone, fused or partly rotating heads
            # have no place for the pairs that stay.
            model_types=("llama", "mistral", "qwen2"),
            methods=("intraslice_plus",),
            allocations=_OF_CURVES,
            alike=True,
            gguf=True,
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
    if settings.allocation not in demands.allocations:
        raise ConfigurationError(
            f"target {settings.target} has no shapes by allocation {settings.allocation}",
            field="compression.allocation",
            hint=f"use {' or '.join(demands.allocations)}, or target research",
        )
    if any(one != "safetensors" for one in settings.exports) and not demands.gguf:
        raise ConfigurationError(
            f"llama.cpp runs no models of target {settings.target}",
            field="compression.exports",
            hint="use target stock or adaptive, or leave the gguf exports out",
        )
    return demands
