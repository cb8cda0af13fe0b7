"""Equal layers for methods that cut what modules read and write of the residual stream; no torch.

Every module loses the ratio: the attention reads and writes a fraction `1 - ratio` of the residual
stream, the MLP `√(1 - ratio)` of it with as small a fraction of its neurons. Sizes are rounded, and
MLP widths use the rest of the budget, so that it is met to within one step of one layer.
"""

from __future__ import annotations

import math
from itertools import pairwise

from intraslice_core.allocation.uniform import require_budget, round_to_multiple
from intraslice_core.plan import ModelGeometry, ModelPlan, ResidualParts, ShapeConstraint


def residual_parts_plan(
    geometry: ModelGeometry, ratio: float, round_to: int, constraint: ShapeConstraint
) -> ModelPlan:
    """Return equal layers; only their MLP widths may differ by one rounding step.

    Args:
        geometry: of the dense model.
        ratio: fraction to remove, in [0, 1).
        round_to: rounding step.
        constraint: of the target, whose tolerance is used.

    Raises:
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    if ratio == 0.0:
        return geometry.dense_plan()
    keep, hidden = 1.0 - ratio, geometry.hidden_size
    attention = round_to_multiple(keep * hidden, round_to, hidden)
    mlp = round_to_multiple(math.sqrt(keep) * hidden, round_to, hidden)
    sizes = ResidualParts(
        attention_reads=attention, attention_writes=attention, mlp_reads=mlp, mlp_writes=mlp
    )
    layer = geometry.dense_layer().model_copy(update={"residual_parts": sizes})
    budget = keep * geometry.dense_plan().parameters(geometry)
    left = budget - geometry.num_hidden_layers * layer.attention_parameters(geometry)
    per_step = round_to * layer.mlp_parameters(geometry) / geometry.intermediate_size
    plan = ModelPlan(
        layers=tuple(
            layer.model_copy(update={"intermediate_size": width})
            for width in _widths(geometry, left / per_step, round_to)
        )
    )
    require_budget(plan, geometry, budget, constraint.tolerance)
    return plan


def _widths(geometry: ModelGeometry, steps: float, round_to: int) -> list[int]:
    """Return MLP widths of as many steps in total, the wider ones spread evenly over depth."""
    layers = geometry.num_hidden_layers
    whole = max(round(steps), layers)
    bounds = [whole * index // layers for index in range(layers + 1)]
    most = geometry.intermediate_size
    return [min((after - before) * round_to, most) for before, after in pairwise(bounds)]
