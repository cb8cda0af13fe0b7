"""The `uniform` allocator (docs/method.md, section 4): equal sizes in all layers.

Rotary pairs and value dimensions are the same in every layer, at the ratio, rounded. MLP widths use
the rest of the budget and differ by one rounding step at most, so that the budget is met to within
one step of one layer.
"""

from __future__ import annotations

import math
from dataclasses import replace
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
    geometry: ModelGeometry,
    ratio: float,
    round_to: int,
    constraint: ShapeConstraint = FREE,
    *,
    whole_heads: bool = False,
) -> ModelPlan:
    """Remove `ratio` of the compressible weights, equally in every layer.

    Args:
        geometry: of the dense model.
        ratio: fraction to remove, in [0, 1).
        round_to: value, query/key and MLP dimensions become multiples of this.
        constraint: of the target. Only its fields on whole attention, equal query/key and value
            widths, numbers of heads, equal MLP widths and the tolerance are used.
        whole_heads: remove whole heads instead of dimensions within them.

    Raises:
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    if ratio == 0.0:
        return geometry.dense_plan()
    layers = geometry.num_hidden_layers
    keep = 1.0 - ratio
    if geometry.input_layers:
        plan = _plan_of_input(geometry, keep, round_to, constraint)
        budget = keep * geometry.dense_plan().parameters(geometry)
        require_budget(plan, geometry, budget, constraint.tolerance)
        return plan
    if whole_heads:
        attention = _whole_heads(geometry, keep, constraint)
    else:
        attention = attention_plan(geometry, keep, round_to, constraint)
    budget = keep * geometry.dense_plan().parameters(geometry)
    left = budget - layers * attention.attention_parameters(geometry)
    widths = distribute(geometry, left, round_to)
    if "width" in constraint.same_across_layers:
        mean = sum(widths) / layers
        widths = [round_to_multiple(mean, round_to, geometry.intermediate_size)] * layers
    plan = ModelPlan(
        layers=tuple(attention.model_copy(update={"intermediate_size": width}) for width in widths)
    )
    require_budget(plan, geometry, budget, constraint.tolerance)
    return plan


def _plan_of_input(
    geometry: ModelGeometry, keep: float, round_to: int, constraint: ShapeConstraint
) -> ModelPlan:
    """Return the plan that cuts every layer of a compressed input in proportion to its sizes.

    MLP widths use the rest of the budget, in proportion to the input's widths.
    """
    attentions = []
    for layer in geometry.input_layers:
        own = geometry.model_copy(
            update={
                "num_attention_heads": layer.num_attention_heads,
                "num_key_value_heads": layer.num_key_value_heads,
                "head_dim": max(layer.qk_head_dim, 2),
            }
        )
        cut = attention_plan(own, keep, round_to, replace(constraint, qk_equals_value=False))
        value = round_to_multiple(keep * layer.v_head_dim, round_to, layer.v_head_dim)
        whole = constraint.stays_whole("pairs", geometry.rotary_pairs)
        if layer.num_attention_heads == 0 or whole:
            cut, value = layer, layer.v_head_dim
        attentions.append(cut.model_copy(update={"v_head_dim": value, "intermediate_size": 0}))
    left = keep * geometry.dense_plan().parameters(geometry)
    left -= sum(attention.attention_parameters(geometry) for attention in attentions)
    total = sum(layer.intermediate_size for layer in geometry.input_layers)
    share = left / (geometry.mlp_projections * geometry.hidden_size * max(total, 1))
    widths = _shares([layer.intermediate_size for layer in geometry.input_layers], share, round_to)
    layers = zip(attentions, widths, strict=True)
    return ModelPlan(
        layers=tuple(
            attention.model_copy(update={"intermediate_size": width}) for attention, width in layers
        )
    )


def _shares(widths: list[int], share: float, round_to: int) -> list[int]:
    """Return about `share` of each width in multiples of `round_to`; the sum is right to one step.

    A width of 0 stays 0; others keep at least one step or all they have.
    """
    shares, exact, given = [], 0.0, 0
    for width in widths:
        exact += share * width
        steps = max(round((exact - given) / round_to), 1) * round_to
        shares.append(min(steps, width))
        given += shares[-1]
    return shares


def attention_plan(
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


def head_rectangles(geometry: ModelGeometry) -> tuple[tuple[int, int], ...]:
    """Return numbers of KV groups and of query heads in each that whole units leave, ascending.

    Units are KV groups with their query heads, or the query heads of a single group.
    """
    groups, queries = geometry.num_key_value_heads, geometry.num_key_value_groups
    if groups == 1:
        return tuple((1, heads) for heads in range(1, queries + 1))
    return tuple((count, queries) for count in range(1, groups + 1))


def with_heads(layer: LayerPlan, groups: int, queries: int) -> LayerPlan:
    """Return the layer with some KV groups and equally many query heads in each."""
    return layer.model_copy(
        update={"num_attention_heads": groups * queries, "num_key_value_heads": groups}
    )


def _whole_heads(geometry: ModelGeometry, keep: float, constraint: ShapeConstraint) -> LayerPlan:
    """Return every layer without `⌊ratio · units⌋` units of attention, as FLAP's code; MLP width 0.

    Another number is removed where the MLPs could not complete the budget with it.
    """
    dense = geometry.dense_layer()
    attention, mlp = dense.attention_parameters(geometry), dense.mlp_parameters(geometry)
    whole, rectangles = dense.model_copy(update={"intermediate_size": 0}), head_rectangles(geometry)
    published = math.floor((1.0 - keep) * len(rectangles) + 1e-9)
    options = {
        len(rectangles) - count: with_heads(whole, groups, queries)
        for count, (groups, queries) in enumerate(rectangles, start=1)
        if constraint.allows_heads(groups * queries, geometry)
    }

    def fits(option: LayerPlan) -> bool:
        return 0.0 < keep * (attention + mlp) - option.attention_parameters(geometry) <= mlp

    fitting = [removed for removed, option in options.items() if fits(option)]
    return options[min(fitting or [0], key=lambda removed: (abs(removed - published), removed))]


def distribute(geometry: ModelGeometry, parameters: float, round_to: int) -> list[int]:
    """Return MLP widths that use `parameters`, the wider ones spread evenly over depth."""
    layers = geometry.num_hidden_layers
    per_step = geometry.mlp_projections * geometry.hidden_size * round_to
    steps = max(round(parameters / per_step), layers)
    bounds = [steps * index // layers for index in range(layers + 1)]
    most = geometry.intermediate_size
    return [min((after - before) * round_to, most) for before, after in pairwise(bounds)]


def require_budget(
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
