"""The Fisher allocator of arXiv 2602.01975: `fisher`, `fisher_pca` (docs/method.md, section 4).

A score is the squared gradient of the loss with respect to a mask of ones on an input of `Wo` or
`Wd`, the predicted loss of removing that dimension. For `fisher_pca` the caller has rotated the
gradients into the PCA basis of each head before squaring; nothing here differs.

All dimensions of all layers and both modules are ranked by score per parameter, and the lowest are
removed until the budget is met. In the publication heads end with different numbers of dimensions.
Here a layer stays rectangular, so the head scores s(h, j) of one layer,
(num_attention_heads, head_dim), are first combined into one list of `head_dim` column scores:

1. Query heads of a KV group share their value dimensions, so dimension j of group k has the score
   t(k, j) = Σ s(h, j) over the group's query heads h.
2. Groups may keep different dimensions, only their number is the same. So each group's t is sorted
   in descending order, and the i-th best dimensions of all groups form column i:
   c(i) = Σ_k t(k, i-th).

c is descending, so cutting a layer to `r_l` dimensions costs c(r_l) + … + c(head_dim - 1). The
published method removes a query/key dimension with each value dimension, here 2 · p_l = r_l. Column
i has the score `attention_bias` · c(i) for 2 · hidden_size · (H + K) parameters, a neuron its score
for `mlp_projections` · hidden_size parameters.

Sums of sorted scores are convex in the size kept. On convex curves, ranking by score per parameter
is equivalent to the Lagrangian, so `lagrangian_plan` does it, with rounding, cap and budget.
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
    """Scores of one layer's dimensions, not negative."""

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
    """Choose every layer's shapes by global rank; all heads are kept.

    Args:
        geometry: of the dense model.
        scores: of every layer, in order.
        budget: maximum compressible parameters of all layers.
        round_to: value, query/key and MLP dimensions become multiples of this.
        module_cap: largest fraction of a module's parameters that may be removed.
        attention_bias: factor on attention's scores; above 1 removes less of attention.
        constraint: of the target; query/key and value dimensions are equal in any case.

    Returns:
        A plan of at most `budget` parameters within the constraint's tolerance; predicted losses
        of attention include the bias.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
        ValueError: if scores have the wrong shape, are negative or not finite.
    """
    curves = ModelCurves(
        geometry=geometry,
        layers=tuple(
            _layer_curves(geometry, layer_scores, round_to, attention_bias)
            for layer_scores in scores
        ),
    )
    return lagrangian_plan(
        curves,
        budget,
        module_cap=module_cap,
        constraint=replace(constraint, qk_equals_value=True),
    )


def column_scores(geometry: ModelGeometry, heads: Losses) -> Losses:
    """Return the column scores c of the module's docstring, (head_dim,), descending.

    Args:
        geometry: of the dense model.
        heads: scores s, (num_attention_heads, head_dim); heads of a KV group are consecutive.
    """
    groups = heads.reshape(geometry.num_key_value_heads, -1, geometry.head_dim).sum(axis=1)
    columns: Losses = np.sort(groups, axis=1)[:, ::-1].sum(axis=0)
    return columns


def _layer_curves(
    geometry: ModelGeometry, scores: LayerScores, round_to: int, attention_bias: float
) -> LayerCurves:
    """Return one layer's curves.

    Raises:
        ValueError: if scores have the wrong shape, are negative or not finite.
    """
    heads = _valid_scores("head", scores.heads, geometry.num_attention_heads, geometry.head_dim)
    neurons = _valid_scores("neuron", scores.neurons, geometry.intermediate_size)
    # The value dimensions carry the score of a column; its rotary pairs cost nothing.
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


def _valid_scores(name: str, scores: Losses, *shape: int) -> Losses:
    """Return scores as float64.

    Raises:
        ValueError: if they have the wrong shape, are negative or not finite.
    """
    array: Losses = np.asarray(scores, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} scores have the shape {array.shape}, expected {shape}")
    if not (np.isfinite(array) & (array >= 0.0)).all():
        raise ValueError(f"a {name} score is negative, NaN or infinite")
    return array
