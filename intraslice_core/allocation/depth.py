"""Sizes of methods that remove whole decoder layers: `shortgpt` and `fusegpt`; no torch.

A budget between two numbers of layers is met exactly where layers may differ in their MLP width:
as many layers as fit are removed, and the MLP of the next one in the order of removal is narrowed
by the rest. Further MLPs follow only if the rest exceeds that one. Every other layer stays dense.

Where all layers must have one shape (target `stock`), the number of layers whose removal is nearest
to the budget is taken, at least one, if it is within the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from intraslice_core.allocation.uniform import require_budget, round_to_multiple
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, ShapeConstraint

REMOVED = LayerPlan(
    num_attention_heads=0, num_key_value_heads=0, qk_pairs=0, v_head_dim=0, intermediate_size=0
)
"""Shape of a removed layer."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Number of layers that are removed, and MLP widths of those that follow in the order."""

    removed: int
    widths: tuple[int, ...] = ()

    @property
    def changed(self) -> int:
        """Return the number of layers that are removed or narrowed."""
        return self.removed + len(self.widths)


def depth_of(
    geometry: ModelGeometry, ratio: float, round_to: int, constraint: ShapeConstraint
) -> Depth:
    """Return how many layers a ratio removes, and which MLP widths make up for the rest.

    Args:
        geometry: of the dense model, whose layers are alike.
        ratio: fraction of the compressible parameters to remove, in [0, 1).
        round_to: rounding step of the MLP widths.
        constraint: of the target.

    Raises:
        BudgetOutOfReachError: if the budget is smaller than one layer with the narrowest MLP, or if
            whole layers miss it by more than the tolerance; names the nearest ratios.
    """
    if ratio == 0.0:
        return Depth(removed=0)
    if "width" in constraint.same_across_layers:
        return Depth(removed=_nearest_number(geometry, ratio, constraint.tolerance))
    return _with_narrow_mlps(geometry, ratio, round_to)


def _nearest_number(geometry: ModelGeometry, ratio: float, tolerance: float) -> int:
    """Return the number of layers whose removal is nearest to the budget, at least one."""
    layers = geometry.num_hidden_layers
    exact = ratio * layers
    fitting = [
        count
        for count in (math.floor(exact), math.ceil(exact))
        if 1 <= count < layers and abs(count - exact) <= tolerance * (layers - exact)
    ]
    if not fitting:
        reachable = sorted({max(math.floor(exact), 1), max(math.ceil(exact), 1)} - {layers})
        raise BudgetOutOfReachError(
            f"removing {ratio:.4g} of the parameters takes {exact:.2f} of {layers} layers, and "
            "this target removes whole ones only",
            field="compression.ratio",
            hint=f"give {_ratios(reachable, layers)}or target research, which narrows one more MLP",
        )
    return min(fitting, key=lambda count: abs(count - exact))


def _ratios(counts: Sequence[int], layers: int) -> str:
    """Return the ratios of numbers of layers for a hint, rounded to four places."""
    return "".join(
        f"a ratio of {count / layers:.4f} ({count} layer{'s' * (count > 1)}), " for count in counts
    )


def _with_narrow_mlps(geometry: ModelGeometry, ratio: float, round_to: int) -> Depth:
    """Return whole layers, and the widths of further MLPs that remove the rest."""
    layers, dense = geometry.num_hidden_layers, geometry.dense_layer()
    whole, width = dense.parameters(geometry), geometry.intermediate_size
    per_neuron = geometry.mlp_projections * geometry.hidden_size
    half_step = 0.5 * per_neuron * round_to
    excess = ratio * layers * whole
    removed = min(math.floor((excess + half_step) / whole), layers - 1)
    excess -= removed * whole
    widths: list[int] = []
    while excess > half_step and removed + len(widths) < layers:
        narrowed = round_to_multiple(width - excess / per_neuron, round_to, width)
        widths.append(narrowed)
        excess -= (width - narrowed) * per_neuron
    if excess > half_step:
        minimum = dense.attention_parameters(geometry) + per_neuron * min(round_to, width)
        total = layers * whole
        raise BudgetOutOfReachError(
            f"the budget keeps {(1.0 - ratio) * total:,.0f} of {total:,} compressible parameters, "
            f"but a model of one layer has at least {minimum:,}",
            field="compression.ratio",
            hint=f"give a ratio of at most {math.floor(1e4 * (1.0 - minimum / total)) / 1e4}",
        )
    return Depth(removed=removed, widths=tuple(widths))


def depth_plan(
    geometry: ModelGeometry,
    ratio: float,
    round_to: int,
    constraint: ShapeConstraint,
    order: Sequence[int] | None = None,
) -> ModelPlan:
    """Return the plan without the first layers of an order, and with narrow MLPs in the next.

    Args:
        geometry: of the dense model.
        ratio: fraction to remove, in [0, 1).
        round_to: rounding step of the MLP widths.
        constraint: of the target.
        order: layers in the order of removal, at least those that change; None begins at the last
            layer, as sizes do not depend on which they are.

    Raises:
        BudgetOutOfReachError: from `depth_of`.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    if ratio == 0.0:
        return geometry.dense_plan()
    depth, dense = depth_of(geometry, ratio, round_to, constraint), geometry.dense_layer()
    if order is None:
        order = tuple(reversed(range(geometry.num_hidden_layers)))
    shapes = dict.fromkeys(order[: depth.removed], REMOVED)
    for layer, width in zip(order[depth.removed : depth.changed], depth.widths, strict=True):
        shapes[layer] = dense.model_copy(update={"intermediate_size": width})
    plan = ModelPlan(
        layers=tuple(shapes.get(layer, dense) for layer in range(geometry.num_hidden_layers))
    )
    budget = (1.0 - ratio) * geometry.dense_plan().parameters(geometry)
    require_budget(plan, geometry, budget, constraint.tolerance)
    return plan
