"""Shapes for an input that was compressed before: no layer grows, and the budget is the input's.

Allocators work with the original sizes, in which the removed dimensions are zero and cost no loss
to remove. Their plans are then bounded by the input's shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan

_ATTEMPTS = 8
_TOLERANCE = 0.005
"""Fraction of the budget that bounding the plan may leave unused."""


def bounded(plan: ModelPlan, geometry: ModelGeometry) -> ModelPlan:
    """Return the plan with no dimension of a layer larger than the input's."""
    if not geometry.input_layers:
        return plan
    layers = zip(plan.layers, geometry.input_layers, strict=True)
    return ModelPlan(layers=tuple(_smaller(layer, own) for layer, own in layers))


def _smaller(layer: LayerPlan, own: LayerPlan) -> LayerPlan:
    width = min(layer.intermediate_size, own.intermediate_size)
    if 0 in (layer.num_attention_heads, own.num_attention_heads):
        removed = layer if layer.num_attention_heads == 0 else own
        return removed.model_copy(update={"intermediate_size": width})
    groups = min(layer.num_key_value_heads, own.num_key_value_heads)
    per_group = min(plan.num_attention_heads // plan.num_key_value_heads for plan in (layer, own))
    return LayerPlan(
        num_attention_heads=groups * per_group,
        num_key_value_heads=groups,
        qk_pairs=min(layer.qk_pairs, own.qk_pairs),
        v_head_dim=min(layer.v_head_dim, own.v_head_dim),
        intermediate_size=width,
    )


def within_input(
    allocate: Callable[[int], ScoredPlan], geometry: ModelGeometry, parameters: int
) -> ScoredPlan:
    """Return the allocator's plan, bounded by the input's shapes and using the budget.

    Bounding frees parameters that the allocator spent on zeros, so it gets a larger budget until
    they are used. For a model that was not compressed before, it is called once.

    Args:
        allocate: returns the plan for a number of compressible parameters.
        geometry: of the input.
        parameters: compressible parameters to keep.
    """
    granted = parameters
    largest = ModelPlan(layers=(geometry.dense_layer(),) * geometry.num_hidden_layers)
    scored = allocate(granted)
    best = replace(scored, plan=bounded(scored.plan, geometry))
    if not geometry.input_layers:
        return scored
    for _ in range(_ATTEMPTS):
        unused = parameters - best.plan.parameters(geometry)
        granted = min(granted + unused, largest.parameters(geometry))
        if unused <= _TOLERANCE * parameters:
            break
        scored = allocate(granted)
        candidate = replace(scored, plan=bounded(scored.plan, geometry))
        if candidate.plan.parameters(geometry) > parameters:
            break
        best = candidate
    return best
