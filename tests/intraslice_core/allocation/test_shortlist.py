"""Candidates are compared by predicted loss before few of them are judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intraslice_core.allocation.curves import LayerLosses, ScoredPlan
from intraslice_core.allocation.estimators import AllocationCandidate
from intraslice_core.allocation.search import CANDIDATES
from intraslice_core.allocation.shortlist import (
    ATTENTION_WEIGHT,
    MAX_JUDGED,
    comparable_loss,
    shortlist,
)
from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.sensitivity.measurement import ModelSensitivity
from intraslice_core.sensitivity.trial_cuts import TrialCut

LAYER = LayerPlan(
    num_attention_heads=4, num_key_value_heads=2, qk_pairs=4, v_head_dim=8, intermediate_size=16
)
PLAIN = AllocationCandidate(heads=True, penalty=2.0, trial_cuts=False)
SCALES = {"attention": 2.0, "mlp": 4.0}
"""Measured over predicted loss of every module."""


def measured() -> ModelSensitivity:
    trials = [
        TrialCut(layer=layer, module=module, cut=0.5, predicted=0.1, measured=0.1 * scale)
        for layer in (0, 2)
        for module, scale in SCALES.items()
    ]
    return ModelSensitivity(layers=(), trials=tuple(trials))


def plan_with(attention: list[float], mlp: list[float]) -> ScoredPlan:
    losses = [LayerLosses(attention=a, mlp=m) for a, m in zip(attention, mlp, strict=True)]
    return ScoredPlan(plan=ModelPlan(layers=(LAYER,) * len(mlp)), layer_losses=tuple(losses))


def test_losses_are_comparable_with_and_without_trial_cuts():
    attention, mlp = [0.1, 0.2, 0.3], [0.5, 0.1, 0.2]
    loss = comparable_loss(measured(), PLAIN, plan_with(attention, mlp))
    assert loss == pytest.approx(ATTENTION_WEIGHT * 2.0 * 0.6 + 4.0 * 0.8)
    # Losses of a candidate with trial cuts are scaled already.
    scaled = plan_with([2.0 * value for value in attention], [4.0 * value for value in mlp])
    with_trials = replace(PLAIN, trial_cuts=True)
    assert comparable_loss(measured(), with_trials, scaled) == pytest.approx(loss)


@pytest.mark.parametrize("seed", range(10))
def test_a_candidate_that_wins_by_a_wide_margin_is_judged(seed):
    rng = np.random.default_rng(seed)
    candidates = [replace(candidate, trial_cuts=False) for candidate in CANDIDATES]
    losses = rng.uniform(0.1, 1.0, (len(candidates), 2, 3))
    winner = int(rng.integers(len(candidates)))
    # Its true loss is less than a tenth of all others', whatever attention is worth.
    losses[winner] = 0.1 * losses.min(0)
    attention_weight = rng.uniform(1.0, 8.0)
    true = attention_weight * 2.0 * losses[:, 0].sum(1) + 4.0 * losses[:, 1].sum(1)
    assert true.argmin() == winner
    predicted = [
        comparable_loss(measured(), candidate, plan_with(*pair.tolist()))
        for candidate, pair in zip(candidates, losses, strict=True)
    ]
    numbers = shortlist(predicted)
    assert {0, winner} <= set(numbers)
    assert len(numbers) == len(set(numbers)) == MAX_JUDGED


def test_the_shortlist_keeps_the_first_and_the_order_of_candidates():
    assert shortlist([9.0, 3.0, 5.0, 1.0, 4.0], 3) == [0, 1, 3]
    assert shortlist([1.0, 3.0], 4) == [0, 1]
    assert shortlist([1.0], 4) == [0]
