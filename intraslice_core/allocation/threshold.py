"""FLAP's allocation (arXiv 2312.11983): one threshold for the scores of all heads and neurons.

Units below the threshold are removed, wherever they are, so that layers and modules differ. The
authors' code counts a head as `512 / 3` neurons (as 170: the tensor is of integers), the ratio of
their parameters in Llama; here it counts as many as its parameters are worth in the model.

If every unit costs its parameters times its score (less the lowest score of all), then a unit is
worth its parameters at a multiplier of exactly its score: the Lagrangian allocator's options at a
multiplier are FLAP's at a threshold. Budgets, rounding, module cap and targets are therefore
treated as in the allocation `lagrangian`. Where the threshold removes heads alone, no neuron can
take the rest of the budget that a last head leaves: that head then stays, and neurons go instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from intraslice_core.allocation.curves import (
    AttentionCurves,
    Curve,
    HeadOption,
    LayerCurves,
    Losses,
    ModelCurves,
)
from intraslice_core.allocation.lagrangian import lagrangian_plan
from intraslice_core.allocation.uniform import head_rectangles, with_heads
from intraslice_core.plan import ModelGeometry, ModelPlan, ShapeConstraint

_LEAST = 1e-9
"""Cost of the lowest unit per parameter, as a share of the range of all scores: more than none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitScores:
    """Standardised scores of one layer, float64."""

    heads: Losses
    """(num_attention_heads,)."""
    neurons: Losses
    """(intermediate_size,)."""


def threshold_plan(
    geometry: ModelGeometry,
    scores: Sequence[UnitScores],
    budget: int,
    *,
    round_to: int,
    module_cap: float,
    constraint: ShapeConstraint,
) -> ModelPlan:
    """Return the plan that removes the units of lowest score.

    Units of the attention are KV groups with their query heads, or the query heads of a single
    group; a group scores the mean of its heads. Every layer keeps at least one of them.

    Args:
        geometry: of the dense model.
        scores: of all layers.
        budget: maximum compressible parameters of all layers.
        round_to: rounding step of the MLP widths.
        module_cap: largest fraction of a module that may be removed.
        constraint: of the target.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    units = [_attention_units(geometry, layer.heads) for layer in scores]
    everything = np.concatenate([*units, *(layer.neurons for layer in scores)])
    lowest = everything.min() - _LEAST * max(float(np.ptp(everything)), 1.0)
    spared = float(len(everything)) * (everything.max() - lowest)

    def plan_with(attention: Sequence[Losses], tolerance: float) -> ModelPlan:
        curves = ModelCurves(
            geometry=geometry,
            layers=tuple(
                _curves(geometry, own - lowest, layer.neurons - lowest, round_to)
                for own, layer in zip(attention, scores, strict=True)
            ),
        )
        allowed = replace(constraint, tolerance=tolerance)
        return lagrangian_plan(curves, budget, module_cap=module_cap, constraint=allowed).plan

    step = geometry.mlp_projections * geometry.hidden_size * round_to
    plan = plan_with(units, 1.0)
    while budget - plan.parameters(geometry) >= step:
        removed = _removed_units(geometry, units, plan)
        if not removed:
            break
        _, layer, unit = max(removed)
        units[layer][unit] += spared
        plan = plan_with(units, 1.0)
    return plan_with(units, constraint.tolerance)


def _removed_units(
    geometry: ModelGeometry, units: Sequence[Losses], plan: ModelPlan
) -> list[tuple[float, int, int]]:
    """Return score, layer and number of every unit of attention that a plan removes."""
    rectangles = head_rectangles(geometry)
    removed = []
    for number, (scores, layer) in enumerate(zip(units, plan.layers, strict=True)):
        heads = layer.num_attention_heads, layer.num_key_value_heads
        remaining = next(
            count
            for count, (groups, queries) in enumerate(rectangles, start=1)
            if (groups * queries, groups) == heads
        )
        order = np.argsort(scores, kind="stable")[: len(scores) - remaining]
        removed += [(float(scores[unit]), number, int(unit)) for unit in order]
    return removed


def _attention_units(geometry: ModelGeometry, heads: Losses) -> Losses:
    """Return the scores of the attention's units from those of its heads, (units,)."""
    if geometry.num_key_value_heads == 1:
        return heads.copy()
    means: Losses = heads.reshape(geometry.num_key_value_heads, -1).mean(axis=1)
    return means


def _curves(geometry: ModelGeometry, units: Losses, neurons: Losses, round_to: int) -> LayerCurves:
    """Return a layer's curves, in parameters times score.

    Args:
        geometry: of the dense model.
        units: scores of the attention's units, positive, (units,).
        neurons: scores of the neurons, positive, (intermediate_size,).
        round_to: rounding step of the MLP width.
    """
    per_neuron = geometry.mlp_projections * geometry.hidden_size
    removed = np.concatenate([[0.0], np.cumsum(np.sort(units))]) * _unit_parameters(geometry)
    heads = tuple(
        HeadOption(heads_per_group=queries, groups=groups, loss=float(removed[len(units) - count]))
        for count, (groups, queries) in enumerate(head_rectangles(geometry), start=1)
    )

    def whole(size: int) -> Curve:
        return Curve(sizes=np.array([size]), losses=np.zeros(1))

    return LayerCurves(
        attention=AttentionCurves(
            pairs=whole(geometry.rotary_pairs), values=whole(geometry.head_dim), heads=heads
        ),
        widths=Curve.from_scores(per_neuron * neurons, round_to),
    )


def _unit_parameters(geometry: ModelGeometry) -> int:
    """Return the parameters that a layer loses with one unit of its attention."""
    dense, rectangles = geometry.dense_layer(), head_rectangles(geometry)
    if len(rectangles) == 1:
        return dense.attention_parameters(geometry)
    smaller = with_heads(dense, *rectangles[-2])
    return dense.attention_parameters(geometry) - smaller.attention_parameters(geometry)
