"""Candidates are compared by their divergence in trial compressions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from intraslice_core.allocation.curves import LayerLosses, ScoredPlan
from intraslice_core.allocation.estimators import AllocationCandidate
from intraslice_core.allocation.judge import HeldOutDivergence
from intraslice_core.allocation.search import CANDIDATES, SearchResult, search
from intraslice_core.errors import ConfigurationError
from intraslice_core.plan import LayerPlan, ModelPlan

Divergences = Callable[[Sequence[ModelPlan]], Sequence[HeldOutDivergence]]
MISSED = ConfigurationError("rounding misses the budget", field="round_to", hint="round less")


def scored(width: int) -> ScoredPlan:
    layer = LayerPlan(
        num_attention_heads=4,
        num_key_value_heads=2,
        qk_pairs=4,
        v_head_dim=8,
        intermediate_size=width,
    )
    plan = ModelPlan(layers=(layer,))
    return ScoredPlan(plan=plan, layer_losses=(LayerLosses(attention=0.0, mlp=0.0),))


def width(plan: ModelPlan) -> int:
    return plan.layers[0].intermediate_size


def diverging(mean: float, *, noise: float = 0.01) -> HeldOutDivergence:
    """Return a divergence of 4 times 64 positions with this mean; noise is the same in all."""
    generator = torch.Generator().manual_seed(0)
    tokens = mean + noise * torch.randn(4, 64, generator=generator)
    return HeldOutDivergence(tokens=tokens, kinds=torch.tensor([0, 0, 0, 1]))


DEFAULT = 16
"""Width of the first candidate's plan."""


def searched(widths: Sequence[int], divergences: Divergences, **changes: Any) -> SearchResult:
    """Search with these widths for the first candidates; the others miss the budget."""
    by_candidate = dict(zip(CANDIDATES, widths, strict=False))

    def allocate(candidate: AllocationCandidate) -> ScoredPlan:
        if candidate not in by_candidate:
            raise MISSED
        return scored(by_candidate[candidate])

    return search(allocate, divergences, **changes)


def by_width(means: dict[int, float]) -> Divergences:
    return lambda plans: [diverging(means[width(plan)]) for plan in plans]


def test_the_best_candidate_comes_first_and_the_others_in_order_of_score():
    results = searched((DEFAULT, 8, 24), by_width({DEFAULT: 3.0, 8: 1.0, 24: 2.0})).candidates
    assert [width(result.scored.plan) for result in results] == [8, 24, DEFAULT]
    assert results[0].candidate == CANDIDATES[1]


def test_the_rival_is_measured_beside_the_candidates():
    rival = scored(4).plan
    result = searched((8,), by_width({4: 4.0, 8: 8.0}), rival=rival)
    assert result.rival is not None
    assert result.rival.score == diverging(4.0).score
    assert result.candidates[0].divergence.score == diverging(8.0).score
    assert searched((8,), by_width({8: 1.0})).rival is None


def test_a_candidate_that_is_better_within_the_standard_error_takes_no_place():
    plain = diverging(1.0)
    noise = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    centred = noise - noise.mean(1, keepdim=True)
    noisy = replace(plain, tokens=plain.tokens - 0.01 + centred)
    results = searched(
        (DEFAULT, 8, 24),
        lambda plans: [plain if width(plan) == DEFAULT else noisy for plan in plans],
    ).candidates
    assert noisy.score < plain.score
    assert width(results[0].scored.plan) == DEFAULT


def test_equal_shapes_are_tried_once():
    tried: list[ModelPlan] = []

    def divergences(plans: Sequence[ModelPlan]) -> list[HeldOutDivergence]:
        tried.extend(plans)
        return [diverging(1.0) for _ in plans]

    assert len(searched([8] * len(CANDIDATES), divergences).candidates) == len(tried) == 1


def test_a_candidate_that_misses_the_budget_is_skipped():
    def allocate(candidate: AllocationCandidate) -> ScoredPlan:
        if candidate == CANDIDATES[0]:
            raise MISSED
        return scored(8)

    result = search(allocate, by_width({8: 1.0}))
    assert result.candidates[0].candidate == CANDIDATES[1]


def test_an_error_is_raised_if_no_candidate_meets_the_budget():
    with pytest.raises(ConfigurationError, match="rounding misses"):
        searched((), by_width({}))
