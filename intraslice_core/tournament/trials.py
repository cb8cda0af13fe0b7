"""Trials of a tournament: its text, the dense model's predictions, and one short run a method."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.allocation.judge import HeldOutDivergence
from intraslice_core.calibration import text_prefix
from intraslice_core.calibration.trial_text import TrialText, TrialTextReader
from intraslice_core.config import CompressionConfig, Method
from intraslice_core.content_key import calibration_facts, content_key
from intraslice_core.cost_model import Candidate, TournamentPlan
from intraslice_core.device import machine_class, resolve_device, return_free_memory
from intraslice_core.errors import ConfigurationError, NumericalError, WebTextError
from intraslice_core.evaluation.held_out import HeldOutReference
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.reports.tournament import TournamentReport
from intraslice_core.run import OpenedModel, Run
from intraslice_core.statistics_cache import StatisticsCache
from intraslice_core.text_sources import WEB
from intraslice_core.tournament.decision import Trial, ranking, report_of

CompressTrial = Callable[[OpenedModel, Path, CompressionConfig, Run, Tensor], object]
"""Writes the checkpoint of a trial, from its calibration sequences, (samples, length)."""

_CACHE_BYTES = 2**31
"""Largest size of the statistics that trials share, where no other run shares them."""
_TEXT = "tournament-text"
_TRIAL = "tournament-trial-"
_DIVERGENCE, _HELD_OUT, _CALIBRATION = "divergence", "held-out-", "calibration-"


@dataclass(kw_only=True)
class Tournament:
    """Trials of all candidates of a plan."""

    dense: OpenedModel
    config: CompressionConfig
    plan: TournamentPlan
    run: Run
    place: Path
    compress: CompressTrial
    tokenizer: PreTrainedTokenizerBase
    trials: list[Trial] = field(default_factory=list)
    dropped: dict[Method, str] = field(default_factory=dict)
    """Reasons of candidates that the tournament had no time for."""
    _model: PreTrainedModel | None = None
    _reference: HeldOutReference | None = None
    _shared_seconds: float = 0.0
    """Duration of reading and writing the text and of the dense model's pass."""

    def decide(self) -> TournamentReport:
        """Run all trials that there is time for, and report the winner.

        Raises:
            NumericalError: if no trial succeeded.
            IntraSliceError: one of the tree in `errors.py`.
        """
        text = self._text()
        done = self.plan.shared_seconds
        for candidate in self.plan.candidates:
            saved = self._saved(candidate, text)
            if saved is None and not self._affords(candidate):
                self.dropped[candidate.method] = (
                    "the trials before it took longer than expected, and the tournament may not "
                    "take longer than its winner's own run"
                )
            else:
                self.trials.append(saved or self._tried(candidate, text, done))
            done += candidate.trial_seconds
        return report_of(
            self.plan,
            self.trials,
            self.dropped,
            held_out={kind: rows.numel() for kind, rows in text.held_out.items()},
            seconds=self.seconds,
        )

    @property
    def seconds(self) -> float:
        """Duration of the tournament so far, over all attempts."""
        return self._shared_seconds + sum(trial.seconds for trial in self.trials)

    # -- text and reference ----------------------------------------------------------------------

    @functools.cached_property
    def _key(self) -> str:
        """Key of everything that the trials' results depend on."""
        device = resolve_device(self.config.device)
        return content_key(
            model=self.dense.fingerprint if self.run.resume_state is not None else "",
            place=machine_class(device),
            config=self.config.model_dump(mode="json", exclude={"devices", "exports", "recover"}),
            calibration=calibration_facts(self.config.calibration),
            sizes=repr(self.plan.sizes),
        )

    def _text(self) -> TrialText:
        """Return the text of the trials: saved by an interrupted run, or read and saved."""
        state = self.run.resume_state
        saved = None if state is None else state.part(_TEXT, self._key)
        if saved is not None:
            tensors, facts = saved
            self._shared_seconds = float(facts["seconds"])
            text = _stored_text(tensors, facts)
            if self.config.calibration.web_is_optional and WEB not in text.calibration:
                self.config = self.config.without_web()
            return text
        started = time.perf_counter()
        self.run.report(Stage.TOURNAMENT, "reading and writing text for the trials", 0.0)
        text = self._read()
        self._shared_seconds = time.perf_counter() - started
        if state is not None:
            tensors = {_CALIBRATION + name: rows for name, rows in text.calibration.items()}
            tensors |= {_HELD_OUT + name: rows for name, rows in text.held_out.items()}
            facts = {
                "kinds": json.dumps([*text.held_out]),
                "warnings": json.dumps(text.warnings),
                "seconds": repr(self._shared_seconds),
            }
            state.save_part(_TEXT, self._key, tensors, facts)
        return text

    def _read(self) -> TrialText:
        """Read and write the text; without optional web text if the hub cannot be reached."""
        try:
            return self._reader().read()
        except WebTextError:
            if not self.config.calibration.web_is_optional:
                raise
        # Its own run warns about the missing web text.
        self.config = self.config.without_web()
        return self._reader().read()

    def _reader(self) -> TrialTextReader:
        sizes = self.plan.sizes
        trials = [sizes.of(self._offline(candidate)) for candidate in self.plan.candidates]
        return TrialTextReader(
            configs=[trial.resolved_calibration for trial in trials],
            judged_samples=sizes.judged_samples,
            judged_length=sizes.judged_length,
            tokenizer=self.tokenizer,
            model=self._dense_model,
            should_cancel=self.run.should_cancel,
        )

    def _dense_model(self) -> PreTrainedModel:
        """Return the dense model, which is loaded once."""
        if self._model is None:
            self._model = load_model(
                self.dense.directory, dtype=self.config.dtype, device=self.config.device
            )
        return self._model

    def _dense_reference(self, text: TrialText) -> HeldOutReference:
        """Return the dense model's predictions on the held-out text, and free the model."""
        if self._reference is None:
            started = time.perf_counter()
            self.run.report(Stage.TOURNAMENT, "scoring the dense model")
            self._reference = HeldOutReference.of(
                self._dense_model(),
                text.judged,
                text_prefix(self.tokenizer),
                batch_size=self.config.batch_size,
                should_cancel=self.run.should_cancel,
            )
            self._model = None
            return_free_memory()
            self._shared_seconds += time.perf_counter() - started
        return self._reference

    # -- trials ----------------------------------------------------------------------------------

    def _affords(self, candidate: Candidate) -> bool:
        """Return whether the leader's own run is longer than the trials with one more."""
        ranked = ranking(self.trials)
        if not ranked:
            return True
        expected = self.plan.shared_seconds
        expected += sum(trial.candidate.trial_seconds for trial in self.trials)
        after = self.seconds * (1.0 + candidate.trial_seconds / expected)
        return after <= ranked[0].affordable_seconds

    def _tried(self, candidate: Candidate, text: TrialText, done: float) -> Trial:
        """Return the result of a candidate's trial, which is saved.

        Args:
            candidate: the method.
            text: of all trials.
            done: expected seconds of everything before.
        """
        reference = self._dense_reference(text)
        started = time.perf_counter()
        divergence, error = None, None
        checkpoint = self.place / f"trial-{candidate.method}"
        try:
            self._compress(candidate, text, checkpoint, done)
            self._report_trial(candidate, "comparing with the dense model", done, 1.0)
            model = load_model(checkpoint, dtype=self.config.dtype, device=self.config.device)
            tokens = reference.divergences(model, self.run.should_cancel)
            divergence = HeldOutDivergence(tokens=tokens, kinds=text.kinds)
            del model
        except (ConfigurationError, NumericalError) as failure:
            error = str(failure)
        finally:
            shutil.rmtree(checkpoint, ignore_errors=True)
            return_free_memory()
        trial = Trial(
            candidate=candidate,
            seconds=time.perf_counter() - started,
            divergence=divergence,
            error=error,
        )
        self._save(trial)
        return trial

    def _compress(
        self, candidate: Candidate, text: TrialText, checkpoint: Path, done: float
    ) -> None:
        """Compress by a candidate, with progress within the tournament's."""
        trial = self.plan.sizes.of(self._offline(candidate))
        calibration = text.settings(trial.resolved_calibration)
        trial = trial.model_copy(update={"calibration": calibration})

        def relay(event: ProgressEvent) -> None:
            self._report_trial(candidate, event.message, done, event.fraction)

        run = Run(
            on_progress=relay,
            should_cancel=self.run.should_cancel,
            statistics_cache=self._cache,
            offload_dir=self.run.offload_dir,
            verify=False,
        )
        self.compress(self.dense, checkpoint, trial, run, text.tokens(calibration))

    def _report_trial(
        self, candidate: Candidate, message: str, done: float, fraction: float
    ) -> None:
        """Report a step of a trial."""
        position = [other.method for other in self.plan.candidates].index(candidate.method) + 1
        name = f"trial {position}/{len(self.plan.candidates)}, {candidate.method}"
        finished = (done + fraction * candidate.trial_seconds) / self.plan.seconds
        self.run.report(Stage.TOURNAMENT, f"{name}: {message}", finished)

    @functools.cached_property
    def _cache(self) -> StatisticsCache:
        """Return the statistics that the trials share; those of other runs, if there are any."""
        if self.run.statistics_cache is not None:
            return self.run.statistics_cache
        free = shutil.disk_usage(self.place).free
        return StatisticsCache(
            directory=self.place / "trial-statistics", max_bytes=min(free // 4, _CACHE_BYTES)
        )

    def _offline(self, candidate: Candidate) -> CompressionConfig:
        """Return a candidate's settings with the calibration text that the trials have."""
        return candidate.config.model_copy(update={"calibration": self.config.calibration})

    def _saved(self, candidate: Candidate, text: TrialText) -> Trial | None:
        """Return the result of a trial that an interrupted run saved."""
        state = self.run.resume_state
        saved = None if state is None else state.part(_TRIAL + candidate.method, self._key)
        if saved is None:
            return None
        tensors, facts = saved
        tokens = tensors.get(_DIVERGENCE)
        return Trial(
            candidate=candidate,
            seconds=float(facts["seconds"]),
            divergence=None
            if tokens is None
            else HeldOutDivergence(tokens=tokens, kinds=text.kinds),
            error=facts.get("error"),
        )

    def _save(self, trial: Trial) -> None:
        if self.run.resume_state is None:
            return
        facts = {"seconds": repr(trial.seconds)}
        if trial.error is not None:
            facts["error"] = trial.error
        tensors = {} if trial.divergence is None else {_DIVERGENCE: trial.divergence.tokens}
        name = _TRIAL + trial.candidate.method
        self.run.resume_state.save_part(name, self._key, tensors, facts)


def _stored_text(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> TrialText:
    """Return the text of a saved state; its kinds are in the order of the first run."""
    return TrialText(
        calibration={
            name.removeprefix(_CALIBRATION): rows
            for name, rows in tensors.items()
            if name.startswith(_CALIBRATION)
        },
        held_out={name: tensors[_HELD_OUT + name] for name in json.loads(facts["kinds"])},
        warnings=tuple(json.loads(facts["warnings"])),
    )
