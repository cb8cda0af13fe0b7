"""Plans of equal layers by method: the allocation `uniform`, and sizes that are known beforehand.

The estimate of a job and the check of the rounding step use them; nothing here imports torch.
"""

from __future__ import annotations

import math

from intraslice_core.allocation.depth import depth_plan
from intraslice_core.allocation.layer_ratios import influence_plan
from intraslice_core.allocation.residual_parts import residual_parts_plan
from intraslice_core.allocation.residual_width import residual_plan
from intraslice_core.allocation.two_stage import two_stage_plan
from intraslice_core.allocation.uniform import head_rectangles, uniform_plan, with_heads
from intraslice_core.config import CompressionSettings
from intraslice_core.methods import METHODS, resolve_allocator
from intraslice_core.plan import ModelGeometry, ModelPlan, ShapeConstraint


def smallest_unit_plan(
    geometry: ModelGeometry, round_to: int, module_cap: float, constraint: ShapeConstraint
) -> ModelPlan:
    """Return the fewest heads and neurons that module cap and target allow in every layer."""
    dense, keep = geometry.dense_layer(), 1.0 - module_cap
    attention, width = dense.attention_parameters(geometry), geometry.intermediate_size
    options = (
        with_heads(dense, groups, queries)
        for groups, queries in head_rectangles(geometry)
        if constraint.allows_heads(groups * queries, geometry)
    )
    slack = 1e-9 * attention
    layer = next(
        option
        for option in options
        if option.attention_parameters(geometry) >= keep * attention - slack
    )
    steps = max(math.ceil(keep * width / round_to - 1e-9), 1)
    layer = layer.model_copy(update={"intermediate_size": min(steps * round_to, width)})
    return ModelPlan(layers=(layer,) * geometry.num_hidden_layers)


def plain_plan(
    settings: CompressionSettings,
    geometry: ModelGeometry,
    ratio: float,
    round_to: int,
    constraint: ShapeConstraint,
) -> ModelPlan:
    """Return equal layers, or the sizes of methods that remove attentions or layers.

    Those that are removed are then the last ones.

    Where the residual stream is sliced, all other sizes are dense.

    Layers of the allocation `block_influence` are equal, too, as if all had the same influence.

    Args:
        settings: of the compression.
        geometry: of the dense model.
        ratio: fraction to remove, in [0, 1).
        round_to: rounding step.
        constraint: of the target.

    Raises:
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    allocator = resolve_allocator(settings)
    if allocator == "two_stage":
        return two_stage_plan(geometry, ratio, round_to, constraint)
    if allocator == "whole_layers":
        return depth_plan(geometry, ratio, round_to, constraint)
    if allocator == "residual_width":
        return residual_plan(geometry, ratio, round_to, constraint.tolerance)
    if allocator == "block_influence":
        equal = (0.0,) * geometry.num_hidden_layers
        return influence_plan(geometry, equal, ratio, round_to, constraint, settings.module_cap)
    if METHODS[settings.method].residual_parts:
        return residual_parts_plan(geometry, ratio, round_to, constraint)
    whole_heads = METHODS[settings.method].units is not None
    return uniform_plan(geometry, ratio, round_to, constraint, whole_heads=whole_heads)
