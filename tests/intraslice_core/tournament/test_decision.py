"""The decision of a tournament: ranking, standard errors, and the time that trials may take."""

from __future__ import annotations

from pathlib import Path

import torch

from intraslice_core.allocation.judge import HeldOutDivergence, difference
from intraslice_core.config import CompressionConfig, Method
from intraslice_core.cost_model import Candidate, TournamentPlan
from intraslice_core.cost_model.tournament import SHORT_SECONDS, TrialSizes
from intraslice_core.progress import ignore_progress, never_cancelled
from intraslice_core.run import OpenedModel, Run
from intraslice_core.tournament.decision import Trial, ranking, report_of, why
from intraslice_core.tournament.trials import Tournament

KINDS = torch.tensor([0, 0, 1, 1])
SIZES = TrialSizes(samples=8, sequence_length=64, judged_samples=2, judged_length=64)


def trial(
    method: Method, level: float | None, *, seconds: float = 1.0, own: float = 100.0
) -> Trial:
    """Return a trial with noisy divergences about a level; None for one that failed."""
    divergence = None
    if level is not None:
        noise = torch.rand(4, 64, generator=torch.Generator().manual_seed(len(method))).double()
        divergence = HeldOutDivergence(tokens=level + 0.1 * noise, kinds=KINDS)
    return Trial(
        candidate=Candidate(
            method=method,
            config=CompressionConfig(method=method),
            own_seconds=own,
            trial_seconds=1.0,
        ),
        seconds=seconds,
        divergence=divergence,
        error=None if divergence is not None else "layer 2: the factorisation failed",
    )


def plan_of(*trials: Trial) -> TournamentPlan:
    return TournamentPlan(
        candidates=tuple(each.candidate for each in trials),
        excluded={"magnitude": "its trial does not fit"},
        sizes=SIZES,
        shared_seconds=1.0,
    )


def test_the_report_ranks_by_divergence_and_gives_paired_standard_errors() -> None:
    trials = [trial("intraslice_plus", 0.5), trial("flap", 0.3), trial("2ssp", None)]
    report = report_of(
        plan_of(*trials),
        trials,
        {"modegpt": "no time"},
        held_out={"text": 128, "self": 128},
        seconds=7.0,
    )
    assert report.winner == "flap"
    assert [each.method for each in report.candidates] == [
        *("flap", "intraslice_plus", "2ssp", "modegpt", "magnitude")
    ]
    first, second, failed, dropped, excluded = report.candidates
    assert first.standard_error is None
    better, worse = trials[1].divergence, trials[0].divergence
    assert better is not None
    assert worse is not None
    assert first.kl == better.score
    assert second.standard_error == difference(better, worse).standard_error
    assert [*second.kl_by_text.values()] == worse.by_kind().tolist()
    assert str(failed.reason) == "its trial failed: layer 2: the factorisation failed"
    assert (dropped.reason, excluded.reason) == ("no time", "its trial does not fit")
    assert report.calibration_tokens == 512
    assert report.reason == why([trials[1], trials[0]])
    assert "less than intraslice_plus, the second" in report.reason


def test_of_equal_divergences_the_earlier_method_wins() -> None:
    first, second = trial("flap", 0.3), trial("2ssp", 0.3)
    assert [each.candidate.method for each in ranking([first, second])] == ["flap", "2ssp"]


def tournament(*trials: Trial) -> Tournament:
    """Return a tournament in which these trials have ended."""
    placeholder = Run(on_progress=ignore_progress, should_cancel=never_cancelled)
    place = Path("nowhere")
    return Tournament(
        dense=OpenedModel(reference="", directory=place),
        config=CompressionConfig(method="auto"),
        plan=plan_of(*trials),
        run=placeholder,
        place=place,
        compress=lambda *_: None,
        tokenizer=None,  # type: ignore[arg-type]
        trials=list(trials),
    )


def test_a_trial_is_dropped_if_the_leader_could_not_pay_for_it() -> None:
    # At the speed of its trial, the leader's own run takes 100 times as long as the trial.
    leader = trial("flap", 0.1, seconds=2.0, own=100.0)
    following = trial("modegpt", 0.9).candidate
    assert tournament(leader, trial("intraslice_plus", 0.5, seconds=50.0))._affords(following)
    slow = trial("intraslice_plus", 0.5, seconds=198.0)
    assert not tournament(leader, slow)._affords(following)
    # The bound is the leader's, not another's.
    assert tournament(trial("flap", 0.9, seconds=2.0), trial("2ssp", 0.1, seconds=198.0))._affords(
        following
    )
    assert tournament()._affords(following)


def test_short_tournaments_are_never_cut_however_busy_the_machine_is() -> None:
    leader = trial("flap", 0.1, seconds=1.0, own=1.0)
    assert tournament(leader)._affords(trial("modegpt", 0.9).candidate)
    # At the same speed, a longer one is.
    slow = trial("2ssp", 0.5, seconds=SHORT_SECONDS)
    assert not tournament(leader, slow)._affords(trial("modegpt", 0.9).candidate)
    busy = trial("flap", 0.1, seconds=SHORT_SECONDS, own=1.0)
    assert tournament(busy, slow)._affords(trial("modegpt", 0.9).candidate)
