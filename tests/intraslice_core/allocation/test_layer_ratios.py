"""MoDeGPT's ratios of layers, and the plans that follow from them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intraslice_core.allocation.layer_ratios import influence_plan, layer_ratios
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.export.targets import DEMANDS
from intraslice_core.plan import FREE, ModelGeometry

GEOMETRY = ModelGeometry(
    num_hidden_layers=6,
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=1000,
    tie_word_embeddings=True,
)


def test_ratios_are_the_published_softmax() -> None:
    influences = (0.4, 0.1, 0.25)
    exact = [math.exp(-influence / 0.15) for influence in influences]
    expected = [3 * 0.2 * weight / sum(exact) for weight in exact]
    assert layer_ratios(influences, 0.2, 0.8) == pytest.approx(expected)


def test_what_the_cap_leaves_goes_to_the_others_by_their_weights() -> None:
    ratios = layer_ratios((0.0, 0.3, 0.45, 0.3), 0.4, 0.8)
    assert ratios[0] == 0.8
    weights = [math.exp(-influence / 0.15) for influence in (0.3, 0.45, 0.3)]
    assert ratios[1:] == pytest.approx([0.8 * weight / sum(weights) for weight in weights])


@given(
    influences=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=40),
    ratio=st.floats(0.0, 0.95),
    room=st.floats(0.0, 1.0),
)
def test_the_mean_of_the_ratios_is_the_model_s(
    influences: list[float], ratio: float, room: float
) -> None:
    cap = ratio + room * (1.0 - ratio)
    ratios = layer_ratios(influences, ratio, cap)
    assert math.fsum(ratios) == pytest.approx(ratio * len(influences), abs=1e-9)
    assert all(0.0 <= own <= cap + 1e-12 for own in ratios)
    # Layers of less influence lose at least as much.
    order = sorted(range(len(ratios)), key=lambda layer: influences[layer])
    sizes = [ratios[layer] for layer in order]
    assert all(first >= second - 1e-12 for first, second in pairwise(sizes))


@given(
    influences=st.lists(st.floats(0.0, 1.5), min_size=6, max_size=6),
    ratio=st.floats(0.01, 0.85),
    step=st.sampled_from([1, 2, 8, 16]),
)
@settings(deadline=None)
def test_every_plan_meets_the_budget_within_the_caps(
    influences: list[float], ratio: float, step: int
) -> None:
    plan = influence_plan(GEOMETRY, influences, ratio, step, FREE, module_cap=0.9)
    dense = GEOMETRY.dense_plan().parameters(GEOMETRY)
    assert abs(plan.parameters(GEOMETRY) - (1.0 - ratio) * dense) <= 3 * 576 * step
    for layer in plan.layers:
        assert layer.v_head_dim <= layer.qk_head_dim
        assert layer.intermediate_size >= 0.1 * 1536 - 1e-9
        assert layer.qk_pairs >= 3.2 - 1e-9
        assert layer.v_head_dim >= 6.4 - 1e-9
        assert layer.intermediate_size % step == 0
        assert layer.num_attention_heads == 9


def test_targets_with_whole_attention_take_the_ratio_from_the_mlps() -> None:
    shapes = DEMANDS["adaptive"].shapes
    plan = influence_plan(GEOMETRY, (0.9, 0.1, 0.1, 0.1, 0.1, 0.9), 0.5, 8, shapes, 0.9)
    dense = GEOMETRY.dense_layer()
    for layer in plan.layers:
        whole = {"intermediate_size": dense.intermediate_size}
        assert layer.model_copy(update=whole) == dense
        assert layer.intermediate_size >= 0.1 * 1536
    assert plan.removed_fraction(GEOMETRY) == pytest.approx(0.5, abs=0.002)
    with pytest.raises(BudgetOutOfReachError, match="stay") as caught:
        influence_plan(GEOMETRY, (0.1,) * 6, 0.75, 8, shapes, 0.9)
    limit = float(str(caught.value.hint).split("at most ")[1].split(",")[0])
    plan = influence_plan(GEOMETRY, (0.1,) * 6, limit, 8, shapes, 0.9)
    assert plan.removed_fraction(GEOMETRY) == pytest.approx(limit, abs=0.002)


def test_equal_influences_give_equal_layers_and_ratio_0_removes_nothing() -> None:
    plan = influence_plan(GEOMETRY, (0.2,) * 6, 0.3, 8, FREE, 0.9)
    assert len({layer.qk_pairs for layer in plan.layers}) == 1
    widths = [layer.intermediate_size for layer in plan.layers]
    assert max(widths) - min(widths) <= 8
    assert influence_plan(GEOMETRY, (0.2,) * 6, 0.0, 8, FREE, 0.9) == GEOMETRY.dense_plan()
