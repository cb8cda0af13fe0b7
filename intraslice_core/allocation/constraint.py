"""What a runtime demands of the shapes, beyond rounding: export targets say it to the allocator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Dimension = Literal["pairs", "value", "width", "heads"]
Module = Literal["attention", "mlp"]

ATTENTION_DIMENSIONS: frozenset[Dimension] = frozenset({"pairs", "value", "heads"})
ALL_DIMENSIONS: frozenset[Dimension] = ATTENTION_DIMENSIONS | {"width"}


@dataclass(frozen=True, kw_only=True)
class ShapeConstraint:
    """Which shapes are allowed; the default leaves every layer free."""

    same_across_layers: frozenset[Dimension] = frozenset()
    """Dimensions that have one size in the whole model. `heads` are query and KV heads."""
    multiples: Mapping[Dimension, int] = field(default_factory=lambda: MappingProxyType({}))
    """A kept size is a multiple of this, or the dense size; of `heads` the query heads are."""
    qk_equals_value: bool = False
    """Query/key heads are as wide as value heads."""
    value_at_most_qk: bool = True
    """Value heads are no wider than query/key heads: fast kernels crop them, or refuse."""
    removable: frozenset[Module] = frozenset()
    """Modules that may be removed whole, where their curves offer it; the cap allows it then."""
    attention_stays_in: frozenset[int] = frozenset()
    """Layers whose attention is not removed in any case."""
    tolerance: float = 0.005
    """Part of the budget that may be left over, because no shape uses it up."""

    def stays_whole(self, dimension: Dimension, dense: int) -> bool:
        """Whether the dense size is the only one allowed."""
        return self.multiples.get(dimension, 1) > dense

    def allows_removal(self, module: Module) -> bool:
        """A size that all layers share cannot be gone from some of them."""
        shared = self.same_across_layers
        kept = "width" in shared if module == "mlp" else bool(shared & {"heads"})
        return module in self.removable and not kept


ONLY_DENSE = 2**30
"""A multiple that no model has: the dense size is all that is allowed."""

FREE = ShapeConstraint()
"""Every layer has shapes of its own: the `research` target."""
