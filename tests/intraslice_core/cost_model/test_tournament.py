"""The plan of a tournament bounds its time by the own run of every method that may win."""

from __future__ import annotations

import pytest

from intraslice_core.config import (
    METHOD_DESCRIPTIONS,
    CalibrationConfig,
    CompressionConfig,
    MaskTrainingConfig,
    Method,
)
from intraslice_core.cost_model import Candidate, plan_tournament
from intraslice_core.cost_model.tournament import (
    BUDGET_SHARE,
    LEAST_TRIAL_TOKENS,
    SHORT_SECONDS,
    fitting,
)
from intraslice_core.errors import ConfigurationError
from tests.intraslice_core.smollm2 import SMOLLM2


def auto(samples: int = 128, length: int = 2048, **changes: object) -> CompressionConfig:
    calibration = CalibrationConfig(source="pydoc", samples=samples, sequence_length=length)
    return CompressionConfig(method="auto", calibration=calibration).model_copy(update=changes)


@pytest.mark.parametrize(("samples", "length"), [(32, 512), (128, 512), (128, 2048), (512, 2048)])
def test_trials_together_take_less_than_any_candidates_own_run(samples: int, length: int) -> None:
    plan = plan_tournament(auto(samples, length), SMOLLM2, 2, "llama")
    shortest = min(candidate.own_seconds for candidate in plan.candidates)
    assert plan.seconds <= BUDGET_SHARE * shortest
    assert {*plan.excluded, *(candidate.method for candidate in plan.candidates)} == {
        *METHOD_DESCRIPTIONS
    }
    assert plan.candidates[0].method == "intraslice_plus"
    for candidate in plan.candidates:
        assert candidate.config.method == candidate.method


def test_more_calibration_text_lets_more_methods_enter_or_lengthens_their_trials() -> None:
    plans = [plan_tournament(auto(samples), SMOLLM2, 2, "llama") for samples in (16, 64, 256, 1024)]
    counts = [len(plan.candidates) for plan in plans]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    sizes = [plan.sizes.samples * plan.sizes.sequence_length for plan in plans]
    assert sizes[-1] > sizes[0] == LEAST_TRIAL_TOKENS


@pytest.mark.parametrize(("samples", "length"), [(1, 16), (2, 16), (3, 100), (8, 64), (64, 512)])
def test_calibration_and_held_out_text_of_a_trial_are_within_the_calibration_text(
    samples: int, length: int
) -> None:
    sizes = plan_tournament(auto(samples, length), SMOLLM2, 2, "llama").sizes
    assert sizes.samples >= 1
    assert sizes.judged_samples >= 1
    assert sizes.judged_length <= sizes.sequence_length <= length
    sequences = sizes.samples + sizes.judged_samples
    assert sequences * sizes.sequence_length <= samples * length


def test_a_method_without_the_target_is_excluded_with_the_reason() -> None:
    plan = plan_tournament(auto(target="stock"), SMOLLM2, 2, "llama")
    assert "target stock does not support method flap" in plan.excluded["flap"]
    assert all(
        "stock" in candidate.config.target and candidate.method != "flap"
        for candidate in plan.candidates
    )


def test_trials_train_masks_on_the_calibrations_share_of_the_tokens() -> None:
    training = MaskTrainingConfig(max_tokens=65_536, max_seconds=800.0)
    plan = plan_tournament(auto(mask_training=training), SMOLLM2, 2, "llama")
    assert [candidate.method for candidate in plan.candidates] == ["spp", "disp"]
    assert "does not train masks" in plan.excluded["intraslice_plus"]
    trial = plan.sizes.of(plan.candidates[0].config)
    share = trial.calibration.samples * trial.calibration.sequence_length / (128 * 2048)
    assert trial.mask_training == training.model_copy(
        update={"max_tokens": round(65_536 * share), "max_seconds": 800.0 * share}
    )
    assert share < 1.0


def test_a_budget_out_of_every_methods_reach_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="cannot be removed"):
        plan_tournament(auto(ratio=0.999, module_cap=0.5), SMOLLM2, 2, "opt")


def candidate(method: Method, own: float, trial: float) -> Candidate:
    return Candidate(
        method=method, config=CompressionConfig(method=method), own_seconds=own, trial_seconds=trial
    )


def entered(*possible: Candidate, shared: float) -> list[Method]:
    return [each.method for each in fitting(possible, shared)]


def test_the_most_methods_that_can_pay_for_all_trials_enter() -> None:
    first = candidate("intraslice_plus", 1000.0, 100.0)
    slow, quick = candidate("modegpt", 500.0, 50.0), candidate("flap", 100.0, 5.0)
    assert entered(first, slow, quick, shared=20.0) == ["intraslice_plus", "modegpt"]
    # 170 s of trials would be more than 80 % of the 200 s of its own run.
    assert entered(first, candidate("modegpt", 200.0, 50.0), shared=20.0) == ["intraslice_plus"]
    assert entered(first, candidate("modegpt", 220.0, 50.0), shared=20.0) == [
        "intraslice_plus",
        "modegpt",
    ]
    # A method whose own run is longer than the first one's does not shorten the trials.
    assert entered(candidate("flap", 50.0, 10.0), slow, shared=1.0) == ["flap"]


def test_trials_of_seconds_are_always_allowed() -> None:
    possible = [candidate("intraslice_plus", 1.0, 0.5), candidate("flap", 0.5, SHORT_SECONDS / 2)]
    assert entered(*possible, shared=0.5) == ["intraslice_plus", "flap"]
    assert entered(*possible, shared=SHORT_SECONDS / 2) == ["intraslice_plus"]
