"""Several allocations, of which the best on held-out text is taken."""

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


def test_the_best_on_held_out_text_comes_first():
    widths = dict(zip(CANDIDATES, (16, 8, 24), strict=True))
    losses = {16: 3.0, 8: 1.0, 24: 2.0}
    found = search(lambda candidate: scored(widths[candidate]), lambda plan: losses[width(plan)])
    assert [width(one.scored.plan) for one in found] == [8, 24, 16]
    assert [one.loss for one in found] == [1.0, 2.0, 3.0]
    assert found[0].candidate == CANDIDATES[1]


def test_equal_shapes_are_tried_once():
    tried = []
    found = search(lambda _: scored(8), lambda plan: float(tried.append(plan) or 1.0))
    assert len(found) == len(tried) == 1


def test_an_offer_beyond_the_budget_is_passed_over():
    def allocate(candidate: AttentionCandidate) -> ScoredPlan:
        if candidate == CANDIDATES[0]:
            raise MISSED
        return scored(8)

    assert search(allocate, lambda _: 1.0)[0].candidate == CANDIDATES[1]


def test_no_offer_within_the_budget_is_said():
    def allocate(_: AttentionCandidate) -> ScoredPlan:
        raise MISSED

    with pytest.raises(ConfigurationError, match="rounding misses"):
        search(allocate, lambda _: 1.0)
