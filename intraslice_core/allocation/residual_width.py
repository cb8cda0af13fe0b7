"""Width of a sliced residual stream (method `slicegpt`) from a budget; no torch.

All sites of the model, the inputs of attention and MLP in every layer, keep one width. A rounding
step of it is a large part of a small model, so that the first sites of the model, in the order of
the forward pass, may have one step more than the others. Every plan counts all that slicing adds
and removes: `ModelPlan.parameters`.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from intraslice_core.allocation.uniform import require_budget
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.plan import ModelGeometry, ModelPlan, ResidualWidths

_COSTLY = 2.0
"""Removed fraction of the stream's width, per removed fraction of parameters, that is warned of."""


def require_foldable_norms(geometry: ModelGeometry) -> None:
    """Raise if biases of norms cannot become biases of the projections that read them.

    Raises:
        ConfigurationError: naming what the model lacks.
    """
    if geometry.norm_bias and not (geometry.attention_bias and geometry.mlp_bias):
        raise ConfigurationError(
            "method slicegpt folds the biases of norms into q, k, v and the MLP, which have no "
            "biases in this model",
            field="compression.method",
            hint="use another method, such as intraslice_plus",
        )


def with_widths(geometry: ModelGeometry, widths: tuple[int, ...]) -> ModelPlan:
    """Return the dense plan with a sliced residual stream.

    Args:
        geometry: of the dense model.
        widths: of the inputs of attention and MLP in every layer, in this order,
            (2 · num_hidden_layers,). The last layer's output is dense.
    """
    bounds = (*widths, geometry.hidden_size)
    dense = geometry.dense_layer()
    layers = (
        dense.model_copy(
            update={
                "residual": ResidualWidths(
                    attention=bounds[site], mlp=bounds[site + 1], output=bounds[site + 2]
                )
            }
        )
        for site in range(0, len(widths), 2)
    )
    return ModelPlan(layers=tuple(layers))


def shortcut_warnings(geometry: ModelGeometry, plan: ModelPlan) -> list[str]:
    """Return a warning if slicing adds so much that the stream loses far more than the ratio."""
    width, hidden, removed = plan.input_width(geometry), geometry.hidden_size, 0.0
    if plan.slices_residual:
        removed = plan.removed_fraction(geometry)
    if 1.0 - width / hidden <= _COSTLY * removed:
        return []
    return [
        f"slicegpt leaves {width:,} of {hidden:,} dimensions of the residual stream to remove "
        f"{removed:.1%} of the parameters, because it adds shortcuts and a table or matrix for "
        "embeddings: other methods suit small models and small ratios better"
    ]


def residual_plan(
    geometry: ModelGeometry, ratio: float, round_to: int, tolerance: float
) -> ModelPlan:
    """Return the plan with the width that a ratio leaves, dense for ratio 0.

    It is the largest within the budget, or the next larger one if only that is within the
    tolerance.

    Args:
        geometry: of the dense model.
        ratio: fraction of the compressible parameters to remove, in [0, 1).
        round_to: rounding step of the width.
        tolerance: largest fraction of the budget that may be missed.

    Raises:
        BudgetOutOfReachError: if the narrowest stream exceeds the budget; names the largest ratio.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    if ratio == 0.0:
        return geometry.dense_plan()
    total = geometry.dense_plan().parameters(geometry)
    budget, sites = (1.0 - ratio) * total, 2 * geometry.num_hidden_layers
    step = min(round_to, geometry.hidden_size)

    def plan_of(steps: int) -> ModelPlan:
        """Return the plan with a number of rounding steps in all sites together."""
        width, wider = divmod(steps, sites)
        sizes = (step * (width + (site < wider)) for site in range(sites))
        return with_widths(geometry, tuple(min(size, geometry.hidden_size) for size in sizes))

    most = sites * math.ceil(geometry.hidden_size / step)
    candidates = range(sites, most + 1)
    fitting = bisect_right(
        candidates, budget, key=lambda steps: plan_of(steps).parameters(geometry)
    )
    smallest = plan_of(sites).parameters(geometry)
    if smallest > budget * (1.0 + tolerance):
        raise BudgetOutOfReachError(
            f"the budget keeps {budget:,.0f} of {total:,} compressible parameters, but a residual "
            f"stream of {step} dimensions, its shortcuts and the dense output head take "
            f"{smallest:,}",
            field="compression.ratio",
            hint=f"give a ratio of at most {math.floor(1e4 * (1.0 - smallest / total)) / 1e4}",
        )
    within = plan_of(candidates[max(fitting - 1, 0)])
    missed = budget - within.parameters(geometry)
    if missed > tolerance * budget and fitting < len(candidates):
        beyond = plan_of(candidates[fitting])
        if beyond.parameters(geometry) - budget < missed:
            within = beyond
    require_budget(within, geometry, budget, tolerance)
    return within
