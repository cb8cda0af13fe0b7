"""The allocator that treats every layer alike (section 4 of docs/method.md, `uniform`).

Rotary pairs and value dims are the same in every layer, rounded to what kernels want; the MLP
widths take up the rest of the budget, one rounding step apart at most, so that the budget is met
as closely as one step of one layer.
"""

from __future__ import annotations

from itertools import pairwise

from intraslice_core.errors import ConfigurationError
from intraslice_core.plan import FREE, LayerPlan, ModelGeometry, ModelPlan, ShapeConstraint


def round_to_multiple(value: float, step: int, limit: int) -> int:
    """The multiple of `step` nearest to `value`, at least one step, or `limit` if that is near.

    `limit`, the dense size, is allowed although it need not be a multiple.
    """
    rounded = min(max(round(value / step), 1) * step, limit)
    return limit if abs(limit - value) <= abs(rounded - value) else rounded


def uniform_plan(
    geometry: ModelGeometry, ratio: float, round_to: int, constraint: ShapeConstraint = FREE
) -> ModelPlan:
    """Remove `ratio` of the compressible weights, equally in every layer.

    Args:
        geometry: of the dense model.
        ratio: fraction to remove, in [0, 1).
        round_to: value dims, q/k dims and MLP widths become multiples of this.
        constraint: what the target demands; only that attention stay whole, that value heads be as
            wide as query heads, that all widths be the same, and the tolerance are looked at.

    Raises:
        ConfigurationError: if rounding misses the budget by more than is tolerated.
    """
    if ratio == 0.0:
        return geometry.dense_plan()
    layers = geometry.num_hidden_layers
    keep = 1.0 - ratio
    attention = _attention(geometry, keep, round_to, constraint)
    budget = keep * geometry.dense_plan().parameters(geometry)
    left = budget - layers * attention.attention_parameters(geometry)
    widths = _distribute(geometry, left, round_to)
    if "width" in constraint.same_across_layers:
        one = sum(widths) / layers
        widths = [round_to_multiple(one, round_to, geometry.intermediate_size)] * layers
    plan = ModelPlan(
        layers=tuple(attention.model_copy(update={"intermediate_size": width}) for width in widths)
    )
    _require_budget(plan, geometry, budget, constraint.tolerance)
    return plan


def _attention(
    geometry: ModelGeometry, keep: float, round_to: int, constraint: ShapeConstraint
) -> LayerPlan:
    """Every layer's, yet without an MLP."""
    dense = geometry.dense_layer().model_copy(update={"intermediate_size": 0})
    if constraint.stays_whole("pairs", geometry.rotary_pairs):
        return dense
    wanted, even = keep * geometry.head_dim, round_to if round_to % 2 == 0 else 2 * round_to
    qk_head_dim = round_to_multiple(wanted, even, geometry.head_dim)
    value = qk_head_dim
    if not constraint.qk_equals_value:
        value = round_to_multiple(wanted, round_to, geometry.head_dim)
    return dense.model_copy(update={"qk_pairs": qk_head_dim // 2, "v_head_dim": value})


def _distribute(geometry: ModelGeometry, parameters: float, round_to: int) -> list[int]:
    """MLP widths that use up `parameters`, wider ones spread evenly over the depth."""
    layers = geometry.num_hidden_layers
    per_step = geometry.mlp_projections * geometry.hidden_size * round_to
    steps = max(round(parameters / per_step), layers)
    bounds = [steps * index // layers for index in range(layers + 1)]
    most = geometry.intermediate_size
    return [min((after - before) * round_to, most) for before, after in pairwise(bounds)]


def _require_budget(
    plan: ModelPlan, geometry: ModelGeometry, budget: float, tolerance: float
) -> None:
    got = plan.parameters(geometry)
    if abs(got - budget) > tolerance * budget:
        raise ConfigurationError(
            f"rounding leaves {got:,} compressible parameters where {budget:,.0f} were asked for",
            field="compression.round_to",
            hint="choose a smaller round_to or another ratio",
        )
