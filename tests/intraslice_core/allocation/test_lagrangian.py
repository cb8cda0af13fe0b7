"""The Lagrangian allocator: budget, cap, constraints, and loss compared with exhaustive search."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.large_models import LLAMAS
from intraslice_core.allocation.curves import (
    AttentionCurves,
    Curve,
    HeadOption,
    LayerCurves,
    ModelCurves,
    ScoredPlan,
    all_heads,
)
from intraslice_core.allocation.lagrangian import lagrangian_plan
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.plan import (
    ALL_DIMENSIONS,
    Dimension,
    LayerPlan,
    ModelGeometry,
    ShapeConstraint,
)
from tests.intraslice_core.allocation.instances import (
    Option,
    best_loss,
    largest_step,
    loss_curve,
    model_curves,
    modules_of,
    realistic_geometries,
    small_geometries,
)
from tests.intraslice_core.smollm2 import SMOLLM2

SEEDS = st.integers(0, 2**32 - 1)
ANY_FILL = ShapeConstraint(tolerance=1.0)
"""Constraint for small models: they have few sizes, so much of the budget may remain unused."""

GEOMETRY = SMOLLM2.model_copy(update={"num_hidden_layers": 12, "intermediate_size": 768})


def dense_parameters(geometry: ModelGeometry) -> int:
    return geometry.dense_plan().parameters(geometry)


def removable(tolerance: float = 1.0, **more: Any) -> ShapeConstraint:
    both = frozenset({"attention", "mlp"})
    return ShapeConstraint(removable=both, tolerance=tolerance, **more)


def losses_add_up(scored: ScoredPlan, curves: ModelCurves) -> bool:
    """Return whether the predicted loss is that of the plan's shapes by the curves."""
    total = 0.0
    for layer, layer_curves in zip(scored.plan.layers, curves.layers, strict=True):
        parts = [(layer_curves.widths, layer.intermediate_size)]
        if layer.num_key_value_heads:
            parts += [
                (layer_curves.attention.pairs, layer.qk_pairs),
                (layer_curves.attention.values, layer.v_head_dim),
            ]
        total += sum(float(curve.losses[curve.sizes == size][0]) for curve, size in parts)
        total += next(
            option.loss
            for option in layer_curves.attention.heads
            if option.groups == layer.num_key_value_heads
            and option.query_heads == layer.num_attention_heads
        )
    return scored.predicted_loss == pytest.approx(total, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    geometry=realistic_geometries(),
    round_to=st.sampled_from([1, 2, 4, 8]),
    ratio=st.floats(0.0, 0.85),
    seed=SEEDS,
    module_cap=st.floats(0.87, 0.97),
)
def test_budget_is_met_within_half_a_percent_and_never_exceeded(
    geometry: ModelGeometry, round_to: int, ratio: float, seed: int, module_cap: float
) -> None:
    curves = model_curves(geometry, round_to, seed)
    budget = int((1 - ratio) * dense_parameters(geometry))
    scored = lagrangian_plan(curves, budget, module_cap=module_cap)
    assert 0.995 * budget <= scored.plan.parameters(geometry) <= budget
    assert losses_add_up(scored, curves)
    dense = geometry.dense_layer()
    for layer in scored.plan.layers:
        least = (1 - module_cap) * dense.attention_parameters(geometry)
        assert layer.attention_parameters(geometry) >= least * (1 - 1e-6)
        assert layer.intermediate_size >= (1 - module_cap) * geometry.intermediate_size * (1 - 1e-6)
        for size, whole in (
            (layer.qk_head_dim, geometry.head_dim),
            (layer.v_head_dim, geometry.head_dim),
            (layer.intermediate_size, geometry.intermediate_size),
        ):
            assert size == whole or size % round_to == 0
        assert layer.v_head_dim <= layer.qk_head_dim
        assert layer.num_attention_heads % layer.num_key_value_heads == 0


@settings(max_examples=150, deadline=None)
@given(
    geometry=small_geometries(),
    round_to=st.sampled_from([2, 4]),
    share=st.floats(0.0, 1.0),
    seed=SEEDS,
    module_cap=st.sampled_from([0.6, 0.9, 1.0]),
    removal=st.booleans(),
)
def test_loss_exceeds_the_optimum_by_less_than_one_step(
    geometry: ModelGeometry,
    round_to: int,
    share: float,
    seed: int,
    module_cap: float,
    removal: bool,
) -> None:
    curves = model_curves(geometry, round_to, seed, removable=removal)
    modules = modules_of(curves, module_cap)
    least = sum(min(option.parameters for option in options) for options in modules)
    budget = int(least + share * (dense_parameters(geometry) - least))
    constraint = removable() if removal else ANY_FILL
    scored = lagrangian_plan(curves, budget, module_cap=module_cap, constraint=constraint)
    assert scored.plan.parameters(geometry) <= budget
    assert losses_add_up(scored, curves)
    best = best_loss(modules, budget)
    step = max(largest_step(options) for options in modules)
    assert best - 1e-9 <= scored.predicted_loss <= best + step + 1e-9
    # No option of less loss would still fit.
    left = budget - scored.plan.parameters(geometry)
    for layer, (shape, losses) in enumerate(
        zip(scored.plan.layers, scored.layer_losses, strict=True)
    ):
        attention, mlp = modules[2 * layer], modules[2 * layer + 1]
        for options, size, loss in (
            (attention, shape.attention_parameters(geometry), losses.attention),
            (mlp, shape.mlp_parameters(geometry), losses.mlp),
        ):
            better = [
                option
                for option in options
                if 0 < option.parameters - size <= left and option.loss < loss - 1e-9
            ]
            assert better == []


@settings(max_examples=100, deadline=None)
@given(layers=st.integers(1, 4), share=st.floats(0.0, 1.0), seed=SEEDS)
def test_convex_curves_with_equal_steps_are_solved_exactly(
    layers: int, share: float, seed: int
) -> None:
    # Two query heads and one KV head: a value dim has as many parameters as a neuron.
    geometry = ModelGeometry(
        num_hidden_layers=layers,
        hidden_size=4,
        intermediate_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=10,
        tie_word_embeddings=True,
    )
    rng = np.random.default_rng(seed)
    curves = ModelCurves(
        geometry=geometry,
        layers=tuple(
            LayerCurves(
                attention=AttentionCurves(
                    pairs=Curve(sizes=np.array([4]), losses=np.zeros(1)),
                    values=Curve.from_losses(loss_curve(rng, 8, "convex"), 2),
                    heads=all_heads(geometry),
                ),
                widths=Curve.from_losses(loss_curve(rng, 12, "convex"), 2),
            )
            for _ in range(layers)
        ),
    )
    modules = modules_of(curves, 1.0)
    least = sum(min(option.parameters for option in options) for options in modules)
    budget = int(least + share * (dense_parameters(geometry) - least))
    scored = lagrangian_plan(curves, budget, module_cap=1.0, constraint=ANY_FILL)
    assert scored.predicted_loss == pytest.approx(best_loss(modules, budget), rel=1e-9, abs=1e-12)
    assert budget - scored.plan.parameters(geometry) < 3 * 4 * 2


@settings(max_examples=100, deadline=None)
@given(
    geometry=st.one_of(small_geometries(), st.just(GEOMETRY)),
    shares=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6),
    seed=SEEDS,
)
def test_more_budget_never_costs_more_loss(
    geometry: ModelGeometry, shares: list[float], seed: int
) -> None:
    curves = model_curves(geometry, 2 if geometry is not GEOMETRY else 8, seed)
    dense = dense_parameters(geometry)
    budgets = sorted(int((0.15 + 0.85 * share) * dense) for share in shares)
    constraint = ShapeConstraint(tolerance=1.0)
    least = least_parameters(curves)
    losses = [
        lagrangian_plan(curves, budget, module_cap=1.0, constraint=constraint).predicted_loss
        for budget in budgets
        if budget >= least
    ]
    assert all(after <= before + 1e-9 for before, after in pairwise(losses))


def least_parameters(curves: ModelCurves) -> int:
    return sum(min(option.parameters for option in options) for options in modules_of(curves, 1.0))


def test_dense_budget_keeps_everything() -> None:
    curves = model_curves(GEOMETRY, 8, 1)
    for budget in (dense_parameters(GEOMETRY), 2 * dense_parameters(GEOMETRY)):
        scored = lagrangian_plan(curves, budget)
        assert scored.plan == GEOMETRY.dense_plan()
        assert scored.predicted_loss == 0.0


def test_loss_goes_where_it_costs_least() -> None:
    """The MLP of one layer costs nothing: it is cut first, as far as the cap allows."""
    curves = model_curves(GEOMETRY, 8, 2, heads=False)
    free = Curve.from_losses(np.zeros(GEOMETRY.intermediate_size + 1), 8)
    steep = Curve.from_losses(np.arange(GEOMETRY.intermediate_size, -1, -1) * 1.0, 8)
    layers = [
        LayerCurves(attention=layer.attention, widths=free if index == 5 else steep)
        for index, layer in enumerate(curves.layers)
    ]
    curves = ModelCurves(geometry=GEOMETRY, layers=tuple(layers))
    scored = lagrangian_plan(curves, int(0.85 * dense_parameters(GEOMETRY)), module_cap=0.75)
    widths = [layer.intermediate_size for layer in scored.plan.layers]
    assert widths[5] == GEOMETRY.intermediate_size // 4
    assert min(widths[:5] + widths[6:]) > GEOMETRY.intermediate_size // 2


def test_modules_are_removed_only_where_it_is_allowed() -> None:
    curves = model_curves(GEOMETRY, 8, 3, removable=True)
    worthless = LayerCurves(
        attention=AttentionCurves(
            pairs=curves.layers[0].attention.pairs,
            values=curves.layers[0].attention.values,
            heads=tuple(
                HeadOption(heads_per_group=option.heads_per_group, groups=option.groups, loss=0.0)
                for option in curves.layers[0].attention.heads
            ),
        ),
        widths=Curve.from_losses(np.zeros(GEOMETRY.intermediate_size + 1), 8, removable=True),
    )
    layers = (worthless, worthless, *curves.layers[2:])
    curves = ModelCurves(geometry=GEOMETRY, layers=layers)
    budget = int(0.6 * dense_parameters(GEOMETRY))
    capped = lagrangian_plan(curves, budget).plan.layers[0]
    assert capped.num_attention_heads > 0
    assert capped.intermediate_size >= 0.1 * GEOMETRY.intermediate_size
    first, second, *_ = lagrangian_plan(
        curves, budget, constraint=removable(attention_stays_in=frozenset({0}))
    ).plan.layers
    nothing = LayerPlan(
        num_attention_heads=0,
        num_key_value_heads=0,
        qk_pairs=0,
        v_head_dim=0,
        intermediate_size=0,
    )
    assert second == nothing
    assert first.num_attention_heads > 0
    assert first.intermediate_size == 0


STOCK = ShapeConstraint(
    same_across_layers=ALL_DIMENSIONS, qk_equals_value=True, multiples={"width": 32}, tolerance=0.05
)


def equal_in(scored: ScoredPlan, dimension: Dimension) -> bool:
    names = {
        "pairs": ("qk_pairs",),
        "value": ("v_head_dim",),
        "width": ("intermediate_size",),
        "heads": ("num_attention_heads", "num_key_value_heads"),
    }[dimension]
    return all(len({getattr(layer, name) for layer in scored.plan.layers}) == 1 for name in names)


@pytest.mark.parametrize("seed", range(8))
def test_equal_shapes_in_all_layers_are_the_best_equal_shapes(seed: int) -> None:
    curves = model_curves(GEOMETRY, 8, seed)
    budget = int(0.7 * dense_parameters(GEOMETRY))
    scored = lagrangian_plan(curves, budget, module_cap=1.0, constraint=STOCK)
    assert all(equal_in(scored, dimension) for dimension in ALL_DIMENSIONS)
    (layer,) = set(scored.plan.layers)
    assert layer.qk_head_dim == layer.v_head_dim
    assert layer.intermediate_size % 32 == 0
    assert losses_add_up(scored, curves)
    summed = summed_modules(curves)
    best = best_loss(summed, budget)
    step = max(largest_step(options) for options in summed)
    assert best - 1e-9 <= scored.predicted_loss <= best + step


def summed_modules(curves: ModelCurves) -> list[list[Any]]:
    """Return options of equal shapes with parameters and losses summed over all layers."""
    layers = [
        modules_of(ModelCurves(geometry=one_layer(), layers=(layer,)), 1.0)
        for layer in curves.layers
    ]
    summed = []
    for module in (0, 1):
        options = []
        for same in zip(*(layer[module] for layer in layers), strict=True):
            shape = same[0].shape
            assert all(option.shape == shape for option in same)
            if shape.qk_head_dim == shape.v_head_dim and shape.intermediate_size % 32 == 0:
                options.append(
                    Option(
                        parameters=sum(option.parameters for option in same),
                        loss=sum(option.loss for option in same),
                        shape=shape,
                    )
                )
        summed.append(options)
    return summed


def one_layer() -> ModelGeometry:
    return GEOMETRY.model_copy(update={"num_hidden_layers": 1})


@pytest.mark.parametrize(
    "shared",
    [{"pairs"}, {"pairs", "value"}, {"heads"}, {"heads", "width"}, {"pairs", "heads", "width"}],
)
def test_shared_dimensions_are_equal_and_the_others_free(shared: set[Dimension]) -> None:
    curves = model_curves(GEOMETRY, 8, 11)
    budget = int(0.6 * dense_parameters(GEOMETRY))
    loose = ShapeConstraint(same_across_layers=frozenset(shared), tolerance=0.02)
    scored = lagrangian_plan(curves, budget, constraint=loose)
    equal = {dimension for dimension in ALL_DIMENSIONS if equal_in(scored, dimension)}
    assert shared <= equal
    assert equal < ALL_DIMENSIONS
    assert losses_add_up(scored, curves)
    free = lagrangian_plan(curves, budget)
    tight = lagrangian_plan(
        curves,
        budget,
        constraint=ShapeConstraint(same_across_layers=ALL_DIMENSIONS, tolerance=0.1),
    )
    assert free.predicted_loss <= scored.predicted_loss <= tight.predicted_loss


@settings(max_examples=40, deadline=None)
@given(geometry=small_geometries(), share=st.floats(0.0, 1.0), seed=SEEDS)
def test_a_shared_dimension_is_chosen_among_all_its_values(
    geometry: ModelGeometry, share: float, seed: int
) -> None:
    curves = model_curves(geometry, 2, seed)
    least = least_parameters(curves)
    budget = int(least + share * (dense_parameters(geometry) - least))
    constraint = ShapeConstraint(same_across_layers=frozenset({"pairs"}), tolerance=1.0)
    scored = lagrangian_plan(curves, budget, module_cap=1.0, constraint=constraint)
    modules = modules_of(curves, 1.0)
    by_pairs = [
        [
            [option for option in options if option.shape.qk_pairs in (0, pairs)]
            for options in modules
        ]
        for pairs in curves.layers[0].attention.pairs.sizes.tolist()
    ]
    best = min(best_loss(part, budget) for part in by_pairs)
    step = max(largest_step(options) for part in by_pairs for options in part)
    assert best - 1e-9 <= scored.predicted_loss <= best + step + 1e-9


def test_multiples_hold_for_sizes_below_dense() -> None:
    curves = model_curves(GEOMETRY, 2, 4)
    multiples: dict[Dimension, int] = {"width": 128, "value": 16, "pairs": 8, "heads": 3}
    constraint = ShapeConstraint(multiples=multiples, tolerance=0.02)
    scored = lagrangian_plan(curves, int(0.6 * dense_parameters(GEOMETRY)), constraint=constraint)
    for layer in scored.plan.layers:
        assert layer.intermediate_size % 128 == 0
        assert layer.v_head_dim % 16 == 0
        assert layer.qk_pairs % 8 == 0
        assert layer.num_attention_heads % 3 == 0
    assert len(set(scored.plan.layers)) > 1


def test_budget_below_the_cap_and_shapes_too_coarse_are_rejected_by_name() -> None:
    curves = model_curves(GEOMETRY, 8, 5)
    with pytest.raises(BudgetOutOfReachError) as caught:
        lagrangian_plan(curves, int(0.4 * dense_parameters(GEOMETRY)), module_cap=0.5)
    assert caught.value.field == "compression.module_cap"
    with pytest.raises(ConfigurationError, match="rounding leaves") as coarse:
        lagrangian_plan(model_curves(one_layer(), 32, 5), int(0.49 * dense_parameters(one_layer())))
    assert coarse.value.field == "compression.round_to"


@pytest.mark.parametrize("heads", [True, False])
def test_a_model_of_seventy_billion_takes_less_than_a_second(heads: bool) -> None:
    geometry = LLAMAS["Llama-3-70B"]
    curves = model_curves(geometry, 8, 6, heads=heads)
    began = time.process_time()
    lagrangian_plan(curves, int(0.7 * dense_parameters(geometry)))
    assert time.process_time() - began < 1.0
