"""FLAP's allocation: one threshold over all units, as in the authors' code, within the budget."""

from __future__ import annotations

import numpy as np
import pytest

from intraslice_core.allocation.threshold import UnitScores, threshold_plan
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.plan import FREE, ModelGeometry, ShapeConstraint
from tests.intraslice_core.smollm2 import SMOLLM2

LAYERS, HEADS, NEURONS = 4, 8, 1376
LLAMA = ModelGeometry(
    num_hidden_layers=LAYERS,
    hidden_size=1024,
    intermediate_size=NEURONS,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    head_dim=128,
    vocab_size=100,
    tie_word_embeddings=True,
)
"""A head has 512/3 times the parameters of a neuron, as in Llama."""


def drawn(geometry: ModelGeometry, seed: int) -> list[UnitScores]:
    """Return skewed scores of mean 0 in every module, as squares of activations have them."""
    generator = np.random.default_rng(seed)
    layers = []
    for _ in range(geometry.num_hidden_layers):
        heads = generator.exponential(size=geometry.num_attention_heads)
        neurons = generator.lognormal(size=geometry.intermediate_size)
        layers.append(
            UnitScores(heads=heads - heads.mean(), neurons=(neurons - neurons.mean()) / 2.0)
        )
    return layers


def published(scores: list[UnitScores], ratio: float) -> tuple[list[int], list[int]]:
    """Return heads and neurons kept by layer as in `prune_flap`, with heads of exact weight."""
    heads = np.stack([layer.heads for layer in scores])
    neurons = np.stack([layer.neurons for layer in scores])
    everything = np.concatenate([heads.ravel(), neurons.ravel()])
    order = np.argsort(-everything)
    weight = np.where(order < heads.size, 512.0 / 3.0, 1.0)
    distance = np.abs(np.cumsum(weight) - weight.sum() * (1.0 - ratio))
    threshold = everything[order][np.argmin(distance)]
    return (heads > threshold).sum(1).tolist(), (neurons > threshold).sum(1).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.35])
def test_plan_is_that_of_the_authors_code_up_to_one_head(seed: int, ratio: float) -> None:
    scores = drawn(LLAMA, seed)
    budget = round((1.0 - ratio) * LLAMA.dense_plan().parameters(LLAMA))
    plan = threshold_plan(LLAMA, scores, budget, round_to=1, module_cap=1.0, constraint=FREE)
    heads, neurons = published(scores, ratio)
    own_heads = [layer.num_attention_heads for layer in plan.layers]
    own_neurons = [layer.intermediate_size for layer in plan.layers]
    assert sum(abs(own - other) for own, other in zip(own_heads, heads, strict=True)) <= 1
    moved = sum(abs(own - other) for own, other in zip(own_neurons, neurons, strict=True))
    assert moved <= 2 * 171
    # The budget is used to the last neuron; the authors' threshold is the nearest unit.
    assert 0 <= budget - plan.parameters(LLAMA) < 3 * LLAMA.hidden_size


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5])
def test_the_budget_is_used_to_one_step_with_whole_key_value_groups(ratio: float) -> None:
    budget = round((1.0 - ratio) * SMOLLM2.dense_plan().parameters(SMOLLM2))
    scores = drawn(SMOLLM2, 5)
    plan = threshold_plan(SMOLLM2, scores, budget, round_to=8, module_cap=0.9, constraint=FREE)
    assert 0 <= budget - plan.parameters(SMOLLM2) < 3 * 576 * 8
    for layer in plan.layers:
        assert layer.num_attention_heads == 3 * layer.num_key_value_heads > 0
        assert (layer.qk_pairs, layer.v_head_dim) == (32, 64)
        assert layer.intermediate_size % 8 == 0
    assert len({layer.intermediate_size for layer in plan.layers}) > 5


def test_the_module_cap_and_whole_attention_hold() -> None:
    scores = drawn(LLAMA, 1)
    low = [UnitScores(heads=scores[0].heads, neurons=scores[0].neurons - 50.0), *scores[1:]]
    budget = round(0.6 * LLAMA.dense_plan().parameters(LLAMA))
    plan = threshold_plan(LLAMA, low, budget, round_to=1, module_cap=0.5, constraint=FREE)
    assert plan.layers[0].intermediate_size == NEURONS // 2
    whole = ShapeConstraint(multiples={"heads": 2**30})
    plan = threshold_plan(LLAMA, low, budget, round_to=1, module_cap=0.9, constraint=whole)
    assert {layer.num_attention_heads for layer in plan.layers} == {HEADS}
    with pytest.raises(BudgetOutOfReachError):
        threshold_plan(LLAMA, low, budget // 8, round_to=1, module_cap=0.5, constraint=FREE)


def test_neurons_complete_the_budget_where_only_heads_are_below_the_threshold() -> None:
    low = [UnitScores(heads=layer.heads - 10.0, neurons=layer.neurons) for layer in drawn(LLAMA, 2)]
    per_head = 4 * 128 * LLAMA.hidden_size
    budget = LLAMA.dense_plan().parameters(LLAMA) - round(2.5 * per_head)
    plan = threshold_plan(LLAMA, low, budget, round_to=1, module_cap=0.9, constraint=FREE)
    assert 0 <= budget - plan.parameters(LLAMA) < 3 * LLAMA.hidden_size
    assert sum(HEADS - layer.num_attention_heads for layer in plan.layers) == 2
    lowest = sorted(score for layer in low for score in layer.heads.tolist())[:2]
    lost = [
        score
        for layer, own in zip(low, plan.layers, strict=True)
        for score in sorted(layer.heads.tolist())[: HEADS - own.num_attention_heads]
    ]
    assert sorted(lost) == lowest
