"""MoDeGPT's allocation (arXiv 2408.09632): a ratio for each layer by its block influence; no torch.

Of the L layers, layer l loses the ratio `φ_l = L φ softmax(-s / ε)_l` of its parameters, with the
block influence `s_l` and the ratio φ of the model. Ratios beyond the cap are cut to it, and the
other layers share the rest by the same weights. Within a layer all dimensions lose the layer's
ratio; MLP widths make up for rounding, so that the budget is met to within one step of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from intraslice_core.allocation.budget import pair_step
from intraslice_core.allocation.uniform import attention_plan, require_budget, round_to_multiple
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, ShapeConstraint

TEMPERATURE = 0.15
"""ε: the lower it is, the more the ratios of the layers differ."""
LARGEST_RATIO = 0.8
"""Cap of a layer's ratio, unless the ratio of the model is larger."""


def layer_ratios(influences: Sequence[float], ratio: float, cap: float) -> tuple[float, ...]:
    """Return the ratio of every layer; their mean is `ratio`.

    Args:
        influences: `s` of every layer.
        ratio: fraction to remove from the model.
        cap: largest ratio of a layer, at least `ratio`.
    """
    least, layers = min(influences), len(influences)
    weights = [math.exp((least - influence) / TEMPERATURE) for influence in influences]
    capped: set[int] = set()
    while len(capped) < layers:
        rest = ratio * layers - cap * len(capped)
        total = sum(weight for layer, weight in enumerate(weights) if layer not in capped)
        shares = [rest * weight / total for weight in weights]
        beyond = {layer for layer, share in enumerate(shares) if share > cap} - capped
        if not beyond:
            return tuple(cap if layer in capped else share for layer, share in enumerate(shares))
        capped |= beyond
    return (cap,) * layers


def influence_plan(
    geometry: ModelGeometry,
    influences: Sequence[float],
    ratio: float,
    round_to: int,
    constraint: ShapeConstraint,
    module_cap: float,
) -> ModelPlan:
    """Return the plan whose layers lose the ratios that follow from their influences.

    Args:
        geometry: of the dense model.
        influences: `s` of every layer; equal ones give the sizes that are known beforehand.
        ratio: fraction to remove, in [0, 1).
        round_to: rounding step of the dimensions.
        constraint: of the target, whose attention may have to stay whole.
        module_cap: largest fraction of a module that may be removed.

    Raises:
        BudgetOutOfReachError: if the smallest allowed layers exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    if ratio == 0.0:
        return geometry.dense_plan()
    layers, dense = geometry.num_hidden_layers, geometry.dense_layer()
    whole, least = dense.parameters(geometry), _smallest(geometry, round_to, constraint, module_cap)
    largest = 1.0 - least.parameters(geometry) / whole
    if ratio > largest:
        raise BudgetOutOfReachError(
            f"the budget keeps {(1.0 - ratio) * layers * whole:,.0f} of {layers * whole:,} "
            f"compressible parameters, but at least {layers * least.parameters(geometry):,} stay",
            field="compression.ratio",
            hint=f"give a ratio of at most {math.floor(10_000 * largest) / 10_000}, or a larger "
            "module_cap",
        )
    cap = min(max(LARGEST_RATIO, ratio), largest)
    ratios = layer_ratios(influences, ratio, cap)
    attentions = [
        _at_least(attention_plan(geometry, 1.0 - own, round_to, constraint), least)
        for own in ratios
    ]
    per_neuron = geometry.mlp_projections * geometry.hidden_size
    exact = [
        ((1.0 - own) * whole - attention.attention_parameters(geometry)) / per_neuron
        for own, attention in zip(ratios, attentions, strict=True)
    ]
    widths = _widths(exact, round_to, least.intermediate_size, geometry.intermediate_size)
    plan = ModelPlan(
        layers=tuple(
            attention.model_copy(update={"intermediate_size": width})
            for attention, width in zip(attentions, widths, strict=True)
        )
    )
    require_budget(plan, geometry, (1.0 - ratio) * layers * whole, constraint.tolerance)
    return plan


def _smallest(
    geometry: ModelGeometry, round_to: int, constraint: ShapeConstraint, module_cap: float
) -> LayerPlan:
    """Return the smallest layer within the module cap and the target."""
    dense, keep = geometry.dense_layer(), 1.0 - module_cap

    def least(size: int, step: int) -> int:
        return min(max(math.ceil(keep * size / step - 1e-9), 1) * step, size)

    sizes = {"intermediate_size": least(dense.intermediate_size, round_to)}
    if not constraint.stays_whole("pairs", geometry.rotary_pairs):
        sizes["qk_pairs"] = least(dense.qk_pairs, pair_step(round_to))
        sizes["v_head_dim"] = least(dense.v_head_dim, round_to)
    return dense.model_copy(update=sizes)


def _at_least(attention: LayerPlan, least: LayerPlan) -> LayerPlan:
    """Return an attention of at least the smallest sizes, values no wider than queries and keys."""
    pairs = max(attention.qk_pairs, least.qk_pairs)
    value = min(max(attention.v_head_dim, least.v_head_dim), 2 * pairs)
    return attention.model_copy(update={"qk_pairs": pairs, "v_head_dim": value})


def _widths(exact: Sequence[float], step: int, least: int, most: int) -> list[int]:
    """Return MLP widths near the exact ones whose sum is right to one step, where sizes allow it.

    Each width takes over the rounding error of those before it; what the bounds of the last layers
    leave goes to the others, the last first.
    """
    widths: list[int] = []
    total = 0.0
    for width in exact:
        total += width
        rounded = round_to_multiple(total - sum(widths), step, most)
        widths.append(max(rounded, least))
    for layer in reversed(range(len(widths))):
        own = widths[layer] + total - sum(widths)
        widths[layer] = max(round_to_multiple(own, step, most), least)
    return widths
