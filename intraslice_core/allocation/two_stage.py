"""Sizes of 2SSP (arXiv 2501.17771): equal MLP widths and some layers without attention; no torch.

Equation 5 balances both: of L layers, `round(L · s^(|MLP| / (1.5 |attention|)))` lose their
attention, with the ratio s and the parameters of a layer's modules. All MLPs are cut equally by the
rest. The authors' code fails where that many attentions cannot be right; here the nearest possible
number is taken.
"""

from __future__ import annotations

from collections.abc import Collection

from intraslice_core.allocation.uniform import distribute, require_budget
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.plan import LayerPlan, ModelGeometry, ModelPlan, ShapeConstraint

ALPHA = 1.5
"""Exponent's divisor of equation 5, the authors' default."""


def removed_attentions(
    geometry: ModelGeometry, ratio: float, round_to: int, constraint: ShapeConstraint
) -> int:
    """Return how many layers lose their attention (equation 5).

    Args:
        geometry: of the dense model.
        ratio: fraction to remove, in [0, 1).
        round_to: rounding step of the MLP widths.
        constraint: of the target, which may keep the attention of some layers.

    Raises:
        BudgetOutOfReachError: if no number leaves a budget that the MLPs can meet.
    """
    dense, layers = geometry.dense_layer(), geometry.num_hidden_layers
    attention, mlp = dense.attention_parameters(geometry), dense.mlp_parameters(geometry)
    smallest = _with_width(dense, min(round_to, geometry.intermediate_size))
    budget = (1.0 - ratio) * layers * (attention + mlp)
    removable = layers - len(constraint.attention_stays_in)

    def fits(count: int) -> bool:
        rest = budget - (layers - count) * attention
        return layers * smallest.mlp_parameters(geometry) <= rest <= layers * mlp

    possible = [count for count in range(removable + 1) if fits(count)]
    if not possible:
        minimum = (layers - removable) * attention + layers * smallest.mlp_parameters(geometry)
        total = layers * (attention + mlp)
        raise BudgetOutOfReachError(
            f"the budget keeps {budget:,.0f} of {total:,} compressible parameters, but 2ssp leaves "
            f"at least {minimum:,}",
            field="compression.ratio",
            hint=f"give a ratio of at most {1.0 - minimum / total:.4f}",
        )
    published = round(layers * ratio ** (mlp / attention / ALPHA)) if ratio > 0.0 else 0
    return min(possible, key=lambda count: abs(count - published))


def _with_width(layer: LayerPlan, width: int) -> LayerPlan:
    """Return the layer with another MLP width."""
    return layer.model_copy(update={"intermediate_size": width})


def two_stage_plan(
    geometry: ModelGeometry,
    ratio: float,
    round_to: int,
    constraint: ShapeConstraint,
    removed: Collection[int] | None = None,
) -> ModelPlan:
    """Return the plan without the attention of some layers and with equal MLP widths.

    Args:
        geometry: of the dense model.
        ratio: fraction to remove, in [0, 1).
        round_to: rounding step of the MLP widths.
        constraint: of the target.
        removed: layers that lose their attention; None takes the last ones, as sizes do not depend
            on which they are.

    Raises:
        BudgetOutOfReachError: from `removed_attentions`.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    layers, dense = geometry.num_hidden_layers, geometry.dense_layer()
    if removed is None:
        count = removed_attentions(geometry, ratio, round_to, constraint)
        removed = range(layers - count, layers)
    if ratio == 0.0:
        return geometry.dense_plan()
    budget = (1.0 - ratio) * geometry.dense_plan().parameters(geometry)
    without = dense.model_copy(
        update=dict.fromkeys(
            ("num_attention_heads", "num_key_value_heads", "qk_pairs", "v_head_dim"), 0
        )
    )
    attentions = [without if layer in removed else dense for layer in range(layers)]
    left = budget - sum(layer.attention_parameters(geometry) for layer in attentions)
    plan = ModelPlan(
        layers=tuple(
            _with_width(layer, width)
            for layer, width in zip(attentions, distribute(geometry, left, round_to), strict=True)
        )
    )
    require_budget(plan, geometry, budget, constraint.tolerance)
    return plan
