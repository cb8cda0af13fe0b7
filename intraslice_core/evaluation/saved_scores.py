"""Scores of an interrupted evaluation: each text, the tasks and the prompts, by model.

An evaluation that resumes loads both models again, but scores nothing twice. A part is saved whole,
with what its observer has seen, so that the report is that of an undisturbed evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from intraslice_core.calibration import calibration_hash
from intraslice_core.evaluation.divergence import DivergenceMeter, HiddenStateRecorder
from intraslice_core.evaluation.perplexity import PerplexityResult
from intraslice_core.evaluation.tasks import TaskScore
from intraslice_core.resume_state import LOCAL_PREFIX, ResumeState

Role = Literal["dense", "compressed"]
Observer = HiddenStateRecorder | DivergenceMeter
_PREFIX = f"{LOCAL_PREFIX}scores-"
_SCORES = "scores"
"""Fact of a part: its scores as JSON."""


@dataclass(frozen=True, kw_only=True)
class SavedScores:
    """Finished parts of an evaluation, in a run's resume state."""

    resume_state: ResumeState
    key: str
    """Digest of everything that the scores depend on: both models, texts, settings and device."""
    on_unsaved: Callable[[str], None]
    """Called with the reason where a part could not be saved."""

    def text(
        self, role: Role, number: int, tokens: Tensor, observer: Observer | None
    ) -> PerplexityResult | None:
        """Return the score of a text and restore its observer; None if it is not saved.

        Args:
            role: model.
            number: position of the text.
            tokens: of the text, (n,), int64; a file may have changed since.
            observer: of the text's positions; None without one.
        """
        saved = self._load(f"{role}-text-{number}")
        if saved is None:
            return None
        state, scores = saved
        if scores["text"] != calibration_hash(tokens) or bool(state) != (observer is not None):
            return None
        if observer is not None:
            observer.restore(state)
        return PerplexityResult(**scores["result"])

    def save_text(
        self,
        role: Role,
        number: int,
        tokens: Tensor,
        observer: Observer | None,
        result: PerplexityResult,
    ) -> None:
        """Save the score of a text with what its observer has seen; arguments as of `text`."""
        state = {} if observer is None else observer.state()
        scores = {"text": calibration_hash(tokens), "result": asdict(result)}
        self._save(f"{role}-text-{number}", state, scores)

    def written(self, source: str) -> Tensor | None:
        """Return the tokens that the dense model has written, (n,), int64; None if not saved."""
        saved = self._load(f"written-{source}")
        return None if saved is None else saved[0]["tokens"]

    def save_written(self, source: str, tokens: Tensor) -> None:
        """Save the tokens that the dense model has written, (n,), int64."""
        self._save(f"written-{source}", {"tokens": tokens}, {})

    def tasks(self, role: Role) -> tuple[TaskScore, ...] | None:
        """Return the model's scores in all tasks; None if they are not saved."""
        saved = self._load(f"{role}-tasks")
        return None if saved is None else tuple(TaskScore(**score) for score in saved[1])

    def save_tasks(self, role: Role, scores: tuple[TaskScore, ...]) -> None:
        """Save the model's scores in all tasks."""
        self._save(f"{role}-tasks", {}, [asdict(score) for score in scores])

    def continuations(self, role: Role) -> tuple[str, ...] | None:
        """Return the model's continuations of all prompts; None if they are not saved."""
        saved = self._load(f"{role}-prompts")
        return None if saved is None else tuple(saved[1])

    def save_continuations(self, role: Role, texts: tuple[str, ...]) -> None:
        """Save the model's continuations of all prompts."""
        self._save(f"{role}-prompts", {}, list(texts))

    def _load(self, part: str) -> tuple[dict[str, Tensor], Any] | None:
        saved = self.resume_state.part(_PREFIX + part, self.key)
        return None if saved is None else (saved[0], json.loads(saved[1][_SCORES]))

    def _save(self, part: str, tensors: Mapping[str, Tensor], scores: object) -> None:
        facts = {_SCORES: json.dumps(scores)}
        reason = self.resume_state.save_scores(_PREFIX + part, self.key, tensors, facts)
        if reason is not None:
            self.on_unsaved(reason)
