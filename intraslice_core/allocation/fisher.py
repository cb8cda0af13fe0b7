"""The paper's estimator (section 4 of docs/method.md, `fisher` and `fisher_pca`).

Scores are squared gradients of the loss with respect to masks of ones on the inputs of `Wo` and
`Wd`: what removing one dimension is predicted to cost. For `fisher_pca` the gradients were rotated
into the PCA basis of each head before they were squared; nothing here differs.

All dimensions are ranked by score per parameter that their removal frees, over all layers and both
modules, and the lowest go until the budget is met. The paper ends with as many dimensions per head
as survive there. Ours must stay rectangular within a layer, so the head scores s(h, j) of one
layer, (num_attention_heads, head_dim), become one list of `head_dim` first:

1. Within a KV group the query heads share their value dims, so dim j of group k is worth
   t(k, j) = Σ s(h, j) over the group's query heads h.
2. Groups are free to keep different dims, only their number is common. So each group's t is sorted
   in descending order, and the i-th best dims of all groups go together: c(i) = Σ_k t(k, i-th).

c descends by construction, so cutting a layer at `r_l` dims costs c(r_l) + … + c(head_dim - 1). The
paper removes dims of queries and keys together with dims of values, one for one; here that means
2 · p_l = r_l, and one column i is worth `attention_bias` · c(i) for 2 · hidden_size · (H + K)
parameters. A neuron is worth its score for `mlp_projections` · hidden_size parameters.

Sums of sorted scores are convex in the size kept, and on convex curves ranking by score per
parameter is what the Lagrangian does; so it does it, and rounding, cap and budget with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from intraslice_core.allocation.budget import pair_step
from intraslice_core.allocation.curves import (
    AttentionCurves,
    Curve,
    LayerCurves,
    Losses,
    ModelCurves,
    ScoredPlan,
    all_heads,
    rounding_steps,
)
from intraslice_core.allocation.lagrangian import lagrangian_plan
from intraslice_core.plan import FREE, ModelGeometry, ShapeConstraint


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerScores:
    """What the dimensions of one layer are worth, not negative."""

    heads: Losses
    """(num_attention_heads, head_dim): inputs of `Wo`, plain or in each head's PCA basis."""
    neurons: Losses
    """(intermediate_size,): inputs of `Wd`."""


def fisher_plan(
    geometry: ModelGeometry,
    scores: Sequence[LayerScores],
    budget: int,
    *,
    round_to: int,
    module_cap: float = 0.9,
    attention_bias: float = 1.0,
    constraint: ShapeConstraint = FREE,
) -> ScoredPlan:
    """Choose every layer's shapes by global rank; all heads stay.

    Args:
        geometry: of the dense model.
        scores: of every layer, in their order.
        budget: compressible parameters of all layers that may stay.
        round_to: value dims, q/k dims and MLP widths become multiples of this.
        module_cap: no module loses more than this fraction of its parameters.
        attention_bias: what attention's scores are multiplied by; above 1 spares it.
        constraint: what the target demands; q/k and value dims are equal in any case.

    Returns:
        A plan of at most `budget` parameters, within 0.5 % of it; prices of attention contain
        the bias.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes have more.
        ConfigurationError: if rounding misses the budget by more than is tolerated.
        ValueError: if scores have the wrong shape, are negative or not finite.
    """
    curves = ModelCurves(
        geometry=geometry,
        layers=tuple(_layer_curves(geometry, one, round_to, attention_bias) for one in scores),
    )
    return lagrangian_plan(
        curves,
        budget,
        module_cap=module_cap,
        constraint=replace(constraint, qk_equals_value=True),
    )


def column_scores(geometry: ModelGeometry, heads: Losses) -> Losses:
    """The list c of the module's docstring, (head_dim,), descending.

    Args:
        geometry: of the dense model.
        heads: scores s, (num_attention_heads, head_dim); heads of a KV group follow each other.
    """
    groups = heads.reshape(geometry.num_key_value_heads, -1, geometry.head_dim).sum(axis=1)
    columns: Losses = np.sort(groups, axis=1)[:, ::-1].sum(axis=0)
    return columns


def _layer_curves(
    geometry: ModelGeometry, scores: LayerScores, round_to: int, attention_bias: float
) -> LayerCurves:
    heads = np.asarray(scores.heads, dtype=np.float64)
    neurons = np.asarray(scores.neurons, dtype=np.float64)
    if heads.shape != (geometry.num_attention_heads, geometry.head_dim):
        raise ValueError(f"head scores have the shape {heads.shape}")
    if neurons.shape != (geometry.intermediate_size,):
        raise ValueError(f"neuron scores have the shape {neurons.shape}")
    for one in (heads, neurons):
        if not (np.isfinite(one) & (one >= 0.0)).all():
            raise ValueError("a score is negative, NaN or infinite")
    # The value dims carry the price of a column, its rotary pairs come with it for nothing.
    step = pair_step(round_to)
    pairs = rounding_steps(geometry.rotary_pairs, step)
    columns = attention_bias * column_scores(geometry, heads)
    return LayerCurves(
        attention=AttentionCurves(
            pairs=Curve(sizes=pairs, losses=np.zeros(len(pairs))),
            values=Curve.from_scores(columns, 2 * step),
            heads=all_heads(geometry),
        ),
        widths=Curve.from_scores(neurons, round_to),
    )
