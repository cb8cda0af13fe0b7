"""Decision of a tournament: ranking of its trials, and the report of the choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intraslice_core.allocation.judge import HeldOutDivergence, difference
from intraslice_core.config import Method
from intraslice_core.cost_model import Candidate, TournamentPlan
from intraslice_core.cost_model.tournament import SHORT_SECONDS
from intraslice_core.errors import NumericalError
from intraslice_core.reports.tournament import TournamentCandidate, TournamentReport


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Result of one candidate's trial."""

    candidate: Candidate
    seconds: float
    divergence: HeldOutDivergence | None
    """None if the trial failed."""
    error: str | None = None

    @property
    def affordable_seconds(self) -> float:
        """Longest tournament that the candidate may win: its own run at the speed of its trial."""
        slowness = self.seconds / self.candidate.trial_seconds
        return slowness * max(self.candidate.own_seconds, SHORT_SECONDS)


def report_of(
    plan: TournamentPlan,
    trials: Sequence[Trial],
    dropped: Mapping[Method, str],
    *,
    held_out: Mapping[str, int],
    seconds: float,
) -> TournamentReport:
    """Return the report of a tournament whose trials have ended.

    Args:
        plan: of the tournament.
        trials: in any order.
        dropped: reasons of candidates that were not tried.
        held_out: held-out tokens by kind of text, in the order of the divergences' kinds.
        seconds: duration of the tournament.

    Raises:
        NumericalError: if no trial succeeded.
    """
    ranked = ranking(trials)
    if not ranked:
        failed = trials[0]
        raise NumericalError(
            f"no method could be tried; {failed.candidate.method}: {failed.error}",
            hint="name a method, or give other calibration text",
        )
    failures = {
        trial.candidate.method: f"its trial failed: {trial.error}"
        for trial in trials
        if trial.error is not None
    }
    return TournamentReport(
        winner=ranked[0].candidate.method,
        reason=why(ranked),
        candidates=(
            *(_measured(trial, ranked[0], [*held_out]) for trial in ranked),
            *_unmeasured({**failures, **dropped, **plan.excluded}),
        ),
        calibration_tokens=plan.sizes.samples * plan.sizes.sequence_length,
        held_out_tokens=dict(held_out),
        seconds=seconds,
    )


def report_without_trials(plan: TournamentPlan) -> TournamentReport:
    """Return the report of a plan with a single candidate."""
    (only,) = plan.candidates
    return TournamentReport(
        winner=only.method,
        reason=f"{only.method}, because trials of other methods do not fit: each says why",
        candidates=(
            TournamentCandidate(method=only.method, reason="no other method to compare with"),
            *_unmeasured(plan.excluded),
        ),
        calibration_tokens=0,
        seconds=0.0,
    )


def ranking(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that succeeded, by ascending divergence and else in the same order."""
    scored = [(trial.divergence.score, trial) for trial in trials if trial.divergence is not None]
    return [trial for _, trial in sorted(scored, key=lambda pair: pair[0])]


def why(ranked: Sequence[Trial]) -> str:
    """Return a sentence that compares the first trial with the second."""
    best = ranked[0]
    assert best.divergence is not None  # of every ranked trial
    first = (
        f"{best.candidate.method} diverged least from the dense model on held-out text: "
        f"{best.divergence.score:.4g} nats per token"
    )
    if len(ranked) == 1:
        return f"{first}; no other method was measured"
    second = ranked[1]
    assert second.divergence is not None
    lead = difference(best.divergence, second.divergence)
    error = f"± {lead.standard_error:.2g}" if lead.standard_error < math.inf else "± unknown"
    return f"{first}, {lead.value:.2g} {error} less than {second.candidate.method}, the second"


def _measured(trial: Trial, winner: Trial, kinds: Sequence[str]) -> TournamentCandidate:
    assert trial.divergence is not None
    assert winner.divergence is not None
    error = None
    if trial is not winner:
        error = difference(winner.divergence, trial.divergence).standard_error
    return TournamentCandidate(
        method=trial.candidate.method,
        kl=trial.divergence.score,
        kl_by_text=dict(zip(kinds, trial.divergence.by_kind().tolist(), strict=True)),
        standard_error=error if error is None or error < math.inf else None,
        seconds=trial.seconds,
    )


def _unmeasured(reasons: Mapping[Method, str]) -> list[TournamentCandidate]:
    return [TournamentCandidate(method=method, reason=reason) for method, reason in reasons.items()]
