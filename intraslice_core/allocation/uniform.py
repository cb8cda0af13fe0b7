"""The `uniform` allocator (docs/method.md, section 4): equal sizes in all layers.

Rotary pairs and value dimensions are the same in every layer, at the ratio, rounded. MLP widths use
the rest of the budget and differ by one rounding step at most, so that the budget is met to within
one step of one layer.
"""

from __future__ import annotations

from itertools import pairwise

from intraslice_core.errors import ConfigurationError
from intraslice_core.plan import FREE, LayerPlan, ModelGeometry, ModelPlan, ShapeConstraint


def round_to_multiple(value: float, step: int, limit: int) -> int:
    """Return the multiple of `step` nearest to `value`, at least one step, or `limit` if nearer.

    `limit`, the dense size, is allowed even if it is not a multiple.
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
        round_to: value, query/key and MLP dimensions become multiples of this.
        constraint: of the target. Only four of its fields are used: whole attention, equal
            query/key and value widths, equal MLP widths, and the tolerance.

    Raises:
        ConfigurationError: if rounding misses the budget by more than the tolerance.
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
        mean = sum(widths) / layers
        widths = [round_to_multiple(mean, round_to, geometry.intermediate_size)] * layers
    plan = ModelPlan(
        layers=tuple(attention.model_copy(update={"intermediate_size": width}) for width in widths)
    )
    _require_budget(plan, geometry, budget, constraint.tolerance)
    return plan


def _attention(
    geometry: ModelGeometry, keep: float, round_to: int, constraint: ShapeConstraint
) -> LayerPlan:
    """Return the plan of every layer's attention, with an MLP width of 0."""
    dense = geometry.dense_layer().model_copy(update={"intermediate_size": 0})
    if constraint.stays_whole("pairs", geometry.rotary_pairs):
        return dense
    exact, even = keep * geometry.head_dim, round_to if round_to % 2 == 0 else 2 * round_to
    qk_head_dim = round_to_multiple(exact, even, geometry.head_dim)
    value = qk_head_dim
    if not constraint.qk_equals_value:
        value = round_to_multiple(exact, round_to, geometry.head_dim)
    return dense.model_copy(update={"qk_pairs": qk_head_dim // 2, "v_head_dim": value})


def _distribute(geometry: ModelGeometry, parameters: float, round_to: int) -> list[int]:
    """Return MLP widths that use `parameters`, the wider ones spread evenly over depth."""
    layers = geometry.num_hidden_layers
    per_step = geometry.mlp_projections * geometry.hidden_size * round_to
    steps = max(round(parameters / per_step), layers)
    bounds = [steps * index // layers for index in range(layers + 1)]
    most = geometry.intermediate_size
    return [min((after - before) * round_to, most) for before, after in pairwise(bounds)]


def _require_budget(
    plan: ModelPlan, geometry: ModelGeometry, budget: float, tolerance: float
) -> None:
    """Raise if the plan misses the budget by more than the tolerance.

    Raises:
        ConfigurationError: naming the parameters of both.
    """
    parameters = plan.parameters(geometry)
    if abs(parameters - budget) > tolerance * budget:
        raise ConfigurationError(
            f"rounding leaves {parameters:,} compressible parameters, the budget is {budget:,.0f}",
            field="compression.round_to",
            hint="choose a smaller round_to or another ratio",
        )
