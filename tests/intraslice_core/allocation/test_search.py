"""Candidates of the allocation are ordered by their loss in a trial compression."""

import pytest

from intraslice_core.allocation.curves import LayerLosses, ScoredPlan
from intraslice_core.allocation.estimators import AttentionCandidate
from intraslice_core.allocation.search import CANDIDATES, search
from intraslice_core.errors import ConfigurationError
from intraslice_core.plan import LayerPlan, ModelPlan

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


def test_the_candidate_of_least_loss_comes_first():
    widths = dict(zip(CANDIDATES, (16, 8, 24), strict=True))
    losses = {16: 3.0, 8: 1.0, 24: 2.0}
    results = search(lambda candidate: scored(widths[candidate]), lambda plan: losses[width(plan)])
    assert [width(result.scored.plan) for result in results] == [8, 24, 16]
    assert [result.loss for result in results] == [1.0, 2.0, 3.0]
    assert results[0].candidate == CANDIDATES[1]


def test_equal_shapes_are_tried_once():
    tried = []
    results = search(lambda _: scored(8), lambda plan: float(tried.append(plan) or 1.0))
    assert len(results) == len(tried) == 1


def test_a_candidate_that_misses_the_budget_is_skipped():
    def allocate(candidate: AttentionCandidate) -> ScoredPlan:
        if candidate == CANDIDATES[0]:
            raise MISSED
        return scored(8)

    assert search(allocate, lambda _: 1.0)[0].candidate == CANDIDATES[1]


def test_an_error_is_raised_if_no_candidate_meets_the_budget():
    def allocate(_: AttentionCandidate) -> ScoredPlan:
        raise MISSED

    with pytest.raises(ConfigurationError, match="rounding misses"):
        search(allocate, lambda _: 1.0)
