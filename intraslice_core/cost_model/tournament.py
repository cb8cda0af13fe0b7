"""Candidates and time of a tournament (`method: auto`), planned before it runs and without torch.

A tournament may take no longer than its winner's own run, so that both together take at most twice
as long. The winner is unknown beforehand: every candidate must afford all trials. Methods whose own
run is shorter than the trials therefore do not enter, nor do methods whose trial is too long. The
default method always enters. Among several lengths of the trials' calibration, the longest with the
most candidates is taken. Seconds are those of the cost model's reference machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from intraslice_core.allocation.budget import compression_budget
from intraslice_core.allocation.rounding import require_rounding
from intraslice_core.config import CalibrationConfig, CompressionConfig, Method
from intraslice_core.cost_model.durations import (
    calibration_seconds,
    expected_durations,
    judging_seconds,
    stage_seconds,
)
from intraslice_core.export.targets import demands_on, require_target
from intraslice_core.methods import fixed_method
from intraslice_core.methods.auto import possible_methods
from intraslice_core.plan import ModelGeometry
from intraslice_core.progress import Stage
from intraslice_core.text_sources import WRITTEN

BUDGET_SHARE = 0.8
"""Largest share of a candidate's own run that all trials together may be predicted to take. The
rest is for errors of the prediction."""
SHORT_SECONDS = 10.0
"""Expected seconds of trials that are always allowed: of runs this short, most is starting."""
TRIAL_LENGTH = 256
"""Largest number of tokens of a trial's calibration sequence."""
LEAST_TRIAL_TOKENS = 4096
"""Calibration tokens of a trial, unless half of all are fewer."""
DIVISORS = (4, 8, 16, 32, 64)
"""Considered numbers of all calibration tokens per token of a trial."""
JUDGED_LENGTH = 128
"""Largest number of tokens of a held-out sequence."""
LEAST_JUDGED_TOKENS, MOST_JUDGED_TOKENS = 512, 2048
"""Bounds of the held-out tokens of each kind of text: an eighth of the calibration tokens."""
KINDS = 3
"""Kinds of held-out text: the user's, free text and conversations that the model writes."""


@dataclass(frozen=True, kw_only=True)
class TrialSizes:
    """Numbers of sequences and tokens that a tournament uses."""

    samples: int
    """Calibration sequences of each trial."""
    sequence_length: int
    judged_samples: int
    """Held-out sequences of each kind of text."""
    judged_length: int

    @property
    def judged_tokens(self) -> int:
        """Held-out tokens of all kinds together."""
        return KINDS * self.judged_samples * self.judged_length

    def of(self, config: CompressionConfig) -> CompressionConfig:
        """Return the settings of a trial: fewer tokens, one device and nothing that follows.

        Masks are trained on fewer tokens in the same proportion.
        """
        sizes = {"samples": self.samples, "sequence_length": self.sequence_length}
        calibration, training = config.calibration, config.mask_training
        if training is not None:
            tokens = calibration.samples * calibration.sequence_length
            training = training.scaled(self.samples * self.sequence_length / tokens)
        return config.model_copy(
            update={
                "calibration": calibration.model_copy(update=sizes),
                "mask_training": training,
                "devices": 1,
                "exports": ("safetensors",),
                "recover": None,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method that may win, with the expected seconds on the reference machine."""

    method: Method
    config: CompressionConfig
    """Settings of its own run, should it win."""
    own_seconds: float
    """Duration of its own run, without fine-tuning and evaluation."""
    trial_seconds: float


@dataclass(frozen=True, kw_only=True)
class TournamentPlan:
    """Candidates of a tournament, and the methods that do not enter."""

    candidates: tuple[Candidate, ...]
    """At least one, in the order of the registry. A single one wins without a trial."""
    excluded: Mapping[Method, str]
    """Reasons by method."""
    sizes: TrialSizes
    shared_seconds: float
    """Duration of reading and writing the text and of the dense model's pass."""

    @property
    def seconds(self) -> float:
        """Expected duration on the reference machine."""
        if len(self.candidates) == 1:
            return 0.0
        return self.shared_seconds + sum(candidate.trial_seconds for candidate in self.candidates)

    @property
    def costliest(self) -> Candidate:
        """Candidate with the longest own run."""
        return max(self.candidates, key=lambda candidate: candidate.own_seconds)


def plan_tournament(
    config: CompressionConfig,
    geometry: ModelGeometry,
    item_bytes: int,
    model_type: str | None = None,
    *,
    verify: bool = True,
) -> TournamentPlan:
    """Return the candidates that suit the request and whose trials are short enough.

    Args:
        config: settings with method `auto`.
        geometry: dimensions of the dense model.
        item_bytes: bytes of a stored weight.
        model_type: type that decides what the target supports; None for any.
        verify: the result is loaded in a clean process.

    Raises:
        ConfigurationError: if no method can compress as requested.
    """

    def check(fixed: CompressionConfig) -> None:
        if model_type is not None:
            require_target(fixed, model_type)
        budget = compression_budget(fixed, geometry, item_bytes)
        require_rounding(fixed, geometry, budget, demands_on(fixed, model_type).shapes)

    possible = possible_methods(config, check)
    costs = _Costs(geometry, item_bytes, verify)
    plans = []
    for sizes in _trial_sizes(config.calibration):
        plans.append(costs.plan([*possible.settings.values()], sizes))
        if len(plans[-1].candidates) == len(possible.settings):
            break
    best = max(plans, key=lambda plan: len(plan.candidates))  # the first of equals
    return TournamentPlan(
        candidates=best.candidates,
        excluded={
            **{method: str(error) for method, error in possible.errors.items()},
            **best.excluded,
        },
        sizes=best.sizes,
        shared_seconds=best.shared_seconds,
    )


def _trial_sizes(calibration: CalibrationConfig) -> Iterator[TrialSizes]:
    """Yield the considered sizes, the longest trials first.

    Held-out sequences are a part of the calibration text, so both together are at most all of it.
    """
    tokens = calibration.samples * calibration.sequence_length
    length = min(calibration.sequence_length, TRIAL_LENGTH)
    if tokens < 2 * length:
        length //= 2
    sequences = tokens // length
    previous = 0
    for divisor in DIVISORS:
        least = min(LEAST_TRIAL_TOKENS, tokens // 2)
        samples = max(max(tokens // divisor, least) // length, 1)
        judged_length = min(length, JUDGED_LENGTH)
        judged = min(max(samples * length // 8, LEAST_JUDGED_TOKENS), MOST_JUDGED_TOKENS)
        judged_samples = min(max(judged // judged_length, 1), max(sequences - samples, 1))
        if samples != previous:
            yield TrialSizes(
                samples=samples,
                sequence_length=length,
                judged_samples=judged_samples,
                judged_length=judged_length,
            )
        previous = samples


@dataclass(frozen=True)
class _Costs:
    """Expected seconds of runs and trials of one model."""

    geometry: ModelGeometry
    item_bytes: int
    verify: bool

    def plan(self, settings: Sequence[CompressionConfig], sizes: TrialSizes) -> TournamentPlan:
        """Return the plan with trials of these sizes; nothing is excluded by its settings."""
        possible = [self._candidate(config, sizes) for config in settings]
        shared = self._shared(settings, sizes)
        candidates = fitting(possible, shared)
        trials = shared + sum(candidate.trial_seconds for candidate in candidates)
        return TournamentPlan(
            candidates=tuple(candidates),
            excluded={
                candidate.method: _reason(candidate, trials)
                for candidate in possible
                if candidate not in candidates
            },
            sizes=sizes,
            shared_seconds=shared,
        )

    def _candidate(self, config: CompressionConfig, sizes: TrialSizes) -> Candidate:
        alone = config.model_copy(update={"recover": None})
        own = expected_durations(
            self.geometry, alone, None, self.item_bytes, verify=self.verify
        ).stages
        trial = stage_seconds(self.geometry, sizes.of(config), None, self.item_bytes)
        stages = (Stage.LOAD, Stage.ALLOCATE, Stage.COMPRESS, Stage.EXPORT)
        judging = judging_seconds(self.geometry, sizes.judged_tokens, self.item_bytes)
        return Candidate(
            method=fixed_method(config),
            config=config,
            own_seconds=sum(own.values()),
            trial_seconds=sum(trial[stage] for stage in stages) + judging,
        )

    def _shared(self, settings: Sequence[CompressionConfig], sizes: TrialSizes) -> float:
        """Return the seconds of what all trials share: the text and the dense model's pass."""
        held_out = [(len(WRITTEN) * sizes.judged_samples, sizes.judged_length)]
        text = max(
            calibration_seconds(self.geometry, sizes.of(config), self.item_bytes, beside=held_out)
            for config in settings
        )
        return text + judging_seconds(self.geometry, sizes.judged_tokens, self.item_bytes)


def fitting(possible: Sequence[Candidate], shared_seconds: float) -> list[Candidate]:
    """Return the most candidates that can each afford all of their trials, in the same order.

    Args:
        possible: methods; the first always enters.
        shared_seconds: duration of what all trials share.
    """
    first = possible[0]
    best = [first]
    bounds = {candidate.own_seconds for candidate in possible}
    for bound in sorted(bounds, reverse=True):
        allowed = max(BUDGET_SHARE * bound, SHORT_SECONDS)
        left = allowed - shared_seconds - first.trial_seconds
        if bound > first.own_seconds or left < 0.0:
            continue
        entered = [first]
        for candidate in sorted(possible[1:], key=lambda candidate: candidate.trial_seconds):
            if candidate.own_seconds >= bound and candidate.trial_seconds <= left:
                entered.append(candidate)
                left -= candidate.trial_seconds
        if len(entered) > len(best):
            best = entered
    return [candidate for candidate in possible if candidate in best]


def _reason(candidate: Candidate, trials: float) -> str:
    """Return why a candidate does not enter a tournament whose trials take `trials` seconds."""
    own = candidate.own_seconds
    if trials > BUDGET_SHARE * own:
        return (
            f"the trials ({trials:.3g} s) would take more than {BUDGET_SHARE:.0%} of its own run "
            f"({own:.3g} s)"
        )
    return f"its trial ({candidate.trial_seconds:.3g} s) does not fit beside the others"
