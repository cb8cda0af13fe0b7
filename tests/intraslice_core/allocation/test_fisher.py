"""The Fisher allocator ranks all dimensions globally and keeps each layer rectangular."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intraslice_core.allocation.fisher import LayerScores, column_scores, fisher_plan
from intraslice_core.plan import ModelGeometry, ShapeConstraint
from tests.intraslice_core.allocation.instances import realistic_geometries

SMALL = ModelGeometry(
    num_hidden_layers=3,
    hidden_size=16,
    intermediate_size=40,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=10,
    tie_word_embeddings=True,
)
LOOSE = ShapeConstraint(tolerance=0.05)
"""Constraint for small models, which have few sizes."""


def random_scores(geometry: ModelGeometry, seed: int) -> list[LayerScores]:
    rng = np.random.default_rng(seed)
    return [
        LayerScores(
            heads=rng.gamma(0.3, 1.0, (geometry.num_attention_heads, geometry.head_dim))
            * np.exp(rng.normal()),
            neurons=rng.gamma(0.3, 1.0, geometry.intermediate_size) * np.exp(rng.normal()),
        )
        for _ in range(geometry.num_hidden_layers)
    ]


def dense_parameters(geometry: ModelGeometry) -> int:
    return geometry.dense_plan().parameters(geometry)


@settings(max_examples=40, deadline=None)
@given(
    geometry=realistic_geometries(),
    round_to=st.sampled_from([1, 2, 4, 8]),
    ratio=st.floats(0.0, 0.85),
    bias=st.floats(0.1, 10.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_budget_is_met_with_rounded_rectangular_capped_shapes(
    geometry: ModelGeometry, round_to: int, ratio: float, bias: float, seed: int
) -> None:
    budget = int((1 - ratio) * dense_parameters(geometry))
    scores = random_scores(geometry, seed)
    plan = fisher_plan(geometry, scores, budget, round_to=round_to, attention_bias=bias).plan
    assert 0.995 * budget <= plan.parameters(geometry) <= budget
    for layer in plan.layers:
        assert layer.qk_head_dim == layer.v_head_dim
        assert layer.num_attention_heads == geometry.num_attention_heads
        assert layer.num_key_value_heads == geometry.num_key_value_heads
        for size, dense in (
            (layer.v_head_dim, geometry.head_dim),
            (layer.intermediate_size, geometry.intermediate_size),
        ):
            assert size == dense or size % round_to == 0
            assert size >= 0.1 * dense * (1 - 1e-6)


def ranked(
    geometry: ModelGeometry, scores: list[LayerScores], budget: int
) -> list[tuple[int, int]]:
    """Return value dimensions and neurons sizes by each layer, removing one dimension at a time."""
    heads = geometry.num_attention_heads + geometry.num_key_value_heads
    costs = {
        "column": 2 * geometry.hidden_size * heads,
        "neuron": geometry.mlp_projections * geometry.hidden_size,
    }
    items = []
    for layer, layer_scores in enumerate(scores):
        columns = column_scores(geometry, layer_scores.heads)
        items += [(score / costs["column"], layer, "column") for score in columns]
        items += [(score / costs["neuron"], layer, "neuron") for score in layer_scores.neurons]
    sizes = [[geometry.head_dim, geometry.intermediate_size] for _ in scores]
    left = dense_parameters(geometry)
    for _, layer, kind in sorted(items):
        if left <= budget:
            break
        sizes[layer][kind == "neuron"] -= 1
        left -= costs[kind]
    return [(dims, width) for dims, width in sizes]


@pytest.mark.parametrize("seed", range(10))
def test_shapes_are_those_of_the_global_rank(seed: int) -> None:
    """Without rounding or cap the two differ by what one column more or less leaves unused."""
    # The allocator removes columns in twos, because two dimensions are a pair.
    scores = random_scores(SMALL, seed)
    budget = int(0.7 * dense_parameters(SMALL))
    plan = fisher_plan(SMALL, scores, budget, round_to=1, module_cap=1.0, constraint=LOOSE).plan
    expected = ranked(SMALL, scores, budget)
    sizes = [(layer.v_head_dim, layer.intermediate_size) for layer in plan.layers]
    for (dims, width), (ranked_dims, ranked_width) in zip(sizes, expected, strict=True):
        assert abs(dims - ranked_dims) <= 2
        assert abs(width - ranked_width) <= 8


def test_columns_are_summed_in_groups_by_dim_and_over_groups_by_rank() -> None:
    heads = np.zeros((4, 8))
    heads[0, 3], heads[1, 3] = 1.0, 2.0  # the same value dim of the first group
    heads[2, 0], heads[3, 7] = 5.0, 4.0  # two dims of the second
    assert column_scores(SMALL, heads).tolist() == [8.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_layer_with_zero_scores_is_cut_first_up_to_the_cap() -> None:
    scores = [
        LayerScores(heads=1.0 + layer.heads, neurons=1.0 + layer.neurons)
        for layer in random_scores(SMALL, 0)
    ]
    scores[1] = LayerScores(heads=np.zeros((4, 8)), neurons=np.zeros(40))
    budget = int(0.74 * dense_parameters(SMALL))
    layers = fisher_plan(
        SMALL, scores, budget, round_to=2, module_cap=0.75, constraint=LOOSE
    ).plan.layers
    assert (layers[1].v_head_dim, layers[1].intermediate_size) == (2, 10)


def test_attention_bias_moves_the_cut_from_attention_to_the_mlp() -> None:
    scores = random_scores(SMALL, 1)
    budget = int(0.6 * dense_parameters(SMALL))
    parameters = [
        sum(
            layer.attention_parameters(SMALL)
            for layer in fisher_plan(
                SMALL, scores, budget, round_to=2, attention_bias=bias, constraint=LOOSE
            ).plan.layers
        )
        for bias in (0.05, 1.0, 20.0)
    ]
    assert parameters[0] < parameters[1] < parameters[2]


@pytest.mark.parametrize(
    "change",
    [
        {"heads": np.ones((4, 7))},
        {"neurons": np.ones(39)},
        {"neurons": np.full(40, np.nan)},
        {"heads": np.full((4, 8), -1.0)},
    ],
)
def test_invalid_scores_are_rejected(change: dict[str, Any]) -> None:
    good = {"heads": np.ones((4, 8)), "neurons": np.ones(40)}
    scores = [LayerScores(**good), LayerScores(**good), LayerScores(**(good | change))]
    with pytest.raises(ValueError, match="score"):
        fisher_plan(SMALL, scores, 100, round_to=2)
