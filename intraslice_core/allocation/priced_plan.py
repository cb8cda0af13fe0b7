"""An allocator's answer: shapes, and the loss each module is predicted to cost."""

from __future__ import annotations

from dataclasses import dataclass

from intraslice_core.plan import ModelPlan


@dataclass(frozen=True, kw_only=True)
class LayerPrice:
    """Predicted loss increase of one layer's modules, in the unit of the curves."""

    attention: float
    mlp: float


@dataclass(frozen=True, kw_only=True)
class PricedPlan:
    """What every layer keeps, and its price."""

    plan: ModelPlan
    prices: tuple[LayerPrice, ...]

    @property
    def predicted_loss(self) -> float:
        """Of all modules together."""
        return sum(price.attention + price.mlp for price in self.prices)
