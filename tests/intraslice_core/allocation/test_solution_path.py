"""One order over all units: budgets, families of nested models, and what targets allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from intraslice_core.allocation.solution_path import (
    LayerPath,
    measured_path,
    removal_order,
    solution_path_plan,
)
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.export.targets import DEMANDS
from intraslice_core.plan import FREE, LayerPlan, ModelGeometry, ModelPlan

GEOMETRY = ModelGeometry(
    num_hidden_layers=6,
    hidden_size=64,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=100,
    tie_word_embeddings=True,
)
DENSE = GEOMETRY.dense_plan().parameters(GEOMETRY)
LOOSE = replace(FREE, tolerance=0.05)


def random_path(seed: int = 0) -> list[LayerPath]:
    """Return rising scores, of layers and dimensions that differ."""
    generator = np.random.default_rng(seed)

    def rising(size: int) -> np.ndarray:
        return np.sort(generator.exponential(generator.uniform(0.5, 2.0), size))

    return [LayerPath(pairs=rising(16), values=rising(32), neurons=rising(256)) for _ in range(6)]


def plan_of(path: Sequence[LayerPath], ratio: float, **changes: object) -> ModelPlan:
    settings = {"round_to": 4, "module_cap": 0.9, "constraint": LOOSE} | changes
    return solution_path_plan(GEOMETRY, path, round((1 - ratio) * DENSE), **settings)  # type: ignore[arg-type]


def sizes(layer: LayerPlan) -> tuple[int, int, int]:
    return layer.qk_pairs, layer.v_head_dim, layer.intermediate_size


@pytest.mark.parametrize("seed", range(4))
def test_a_smaller_model_is_a_part_of_every_larger_one(seed: int) -> None:
    path = random_path(seed)
    plans = [plan_of(path, ratio) for ratio in np.linspace(0.0, 0.8, 41)]
    for larger, smaller in pairwise(plans):
        for wide, narrow in zip(larger.layers, smaller.layers, strict=True):
            assert all(a >= b for a, b in zip(sizes(wide), sizes(narrow), strict=True))


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.8])
def test_the_budget_is_met_within_the_largest_rounding_step(ratio: float) -> None:
    plan, budget = plan_of(random_path(), ratio), round((1 - ratio) * DENSE)
    step = 64 * 6 * 4
    assert budget - step < plan.parameters(GEOMETRY) <= budget


def test_neurons_return_where_a_step_of_attention_exceeds_the_tolerance() -> None:
    path = random_path()
    for ratio in np.linspace(0.1, 0.7, 25):
        budget = round((1 - ratio) * DENSE)
        tight = replace(FREE, tolerance=0.004)
        strict = plan_of(path, float(ratio), round_to=2, constraint=tight)
        assert abs(strict.parameters(GEOMETRY) - budget) <= 0.004 * budget
        loose = plan_of(path, float(ratio), round_to=2)
        assert strict.parameters(GEOMETRY) >= loose.parameters(GEOMETRY)


def test_the_units_of_lowest_score_are_removed_wherever_they_are() -> None:
    # No pairs go, so that no value dimension goes before its turn.
    path = [replace(layer, pairs=layer.pairs + 100.0) for layer in random_path()]
    plan = plan_of(path, 0.4, round_to=2)
    removed, remaining = [], []
    for own, layer in zip(path, plan.layers, strict=True):
        assert layer.qk_pairs == 16
        for scores, size in (
            (own.values, layer.v_head_dim),
            (own.neurons, layer.intermediate_size),
        ):
            means = scores.reshape(-1, 2).mean(1)  # steps are ranked by their means
            first = len(means) - size // 2
            removed += means[:first].tolist()
            remaining += means[first:].tolist()
    assert max(removed) <= min(remaining)


def test_scores_that_fall_are_removed_together_at_their_mean() -> None:
    path = random_path()
    falling = np.concatenate([[5.0, 1.0], np.full(254, 9.0)])
    path[0] = replace(path[0], neurons=falling)
    order = removal_order(GEOMETRY, path, round_to=1, module_cap=1.0, constraint=FREE)
    own = [step for step in order if (step.layer, step.dimension) == (0, "width")]
    assert [step.score for step in own[:3]] == [3.0, 3.0, 9.0]
    assert [step.before - step.after for step in own] == [1] * 255


def test_values_are_never_wider_than_queries_and_keys() -> None:
    path = [
        LayerPath(pairs=np.full(16, 0.1), values=np.full(32, 5.0), neurons=np.full(256, 1.0))
    ] * 6
    order = removal_order(GEOMETRY, path, round_to=4, module_cap=0.9, constraint=FREE)
    layer = GEOMETRY.dense_layer()
    for step in (step for step in order if step.layer == 0):
        field = {"pairs": "qk_pairs", "value": "v_head_dim", "width": "intermediate_size"}
        assert step.before == getattr(layer, field[step.dimension])
        layer = layer.model_copy(update={field[step.dimension]: step.after})
        assert layer.v_head_dim <= layer.qk_head_dim
    assert layer.attention_parameters(
        GEOMETRY
    ) >= 0.1 * GEOMETRY.dense_layer().attention_parameters(GEOMETRY)
    assert layer.intermediate_size >= 0.1 * 256


def test_target_adaptive_keeps_whole_attentions() -> None:
    plan = plan_of(random_path(), 0.4, constraint=DEMANDS["adaptive"].shapes)
    assert {(layer.qk_pairs, layer.v_head_dim) for layer in plan.layers} == {(16, 32)}
    assert len({layer.intermediate_size for layer in plan.layers}) > 1


def test_budgets_below_the_module_cap_are_errors() -> None:
    with pytest.raises(BudgetOutOfReachError, match="cannot be removed") as caught:
        plan_of(random_path(), 0.8, module_cap=0.5)
    assert caught.value.field == "compression.module_cap"
    with pytest.raises(ConfigurationError, match="rounding leaves"):
        plan_of(random_path(), 0.47, round_to=32, constraint=replace(FREE, tolerance=1e-4))


def test_measured_losses_are_compared_per_parameter() -> None:
    pairs = np.array([5.0, *np.linspace(3.0, 0.0, 16)])
    values, widths = np.linspace(6.4, 0.0, 33), np.linspace(25.6, 0.0, 257)
    path = measured_path(GEOMETRY, pairs, values, widths)
    assert path.pairs[0] == pytest.approx(0.2 / (2 * 64 * 6))
    assert path.pairs[-1] == pytest.approx(2.0 / (2 * 64 * 6))
    assert path.values == pytest.approx(np.full(32, 0.2 / (64 * 6)))
    assert path.neurons == pytest.approx(np.full(256, 0.1 / (64 * 3)))
