"""Verdict on a result in words, from its figures.

The thresholds stand in `THRESHOLDS` and nowhere else in Python. The table of docs/results.md
repeats them for readers, and for the dashboard, which writes its own verdict; a test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intraslice_core.reports.quantities import number, percent, short_change, times
from intraslice_core.reports.references import text_name
from intraslice_core.text_sources import Domain, domain_of

if TYPE_CHECKING:
    from intraslice_core.reports.schema import CompressionReport, TaskComparison

Level = Literal["negligible", "small", "noticeable", "strong", "severe", "unknown"]
Tone = Literal["ok", "warn", "bad", "info"]
"""Colour of a verdict, as in the design system."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Worst figures of one level; a result has the first level whose limits it meets."""

    level: Level
    title: str
    tone: Tone
    max_perplexity_ratio: float
    """Largest perplexity ratio, compressed / dense, on any text that counts."""
    min_task_ratio: float
    """Smallest task score as a fraction of the dense model's."""


THRESHOLDS: tuple[Threshold, ...] = (
    Threshold(
        level="negligible",
        title="Almost no quality loss",
        tone="ok",
        max_perplexity_ratio=1.05,
        min_task_ratio=0.98,
    ),
    Threshold(
        level="small",
        title="Small quality loss",
        tone="ok",
        max_perplexity_ratio=1.15,
        min_task_ratio=0.95,
    ),
    Threshold(
        level="noticeable",
        title="Noticeable quality loss",
        tone="warn",
        max_perplexity_ratio=1.50,
        min_task_ratio=0.90,
    ),
    Threshold(
        level="strong",
        title="Strong quality loss",
        tone="bad",
        max_perplexity_ratio=2.00,
        min_task_ratio=0.75,
    ),
    Threshold(
        level="severe",
        title="Severe quality loss",
        tone="bad",
        max_perplexity_ratio=math.inf,
        min_task_ratio=-math.inf,
    ),
)

_ADVICE: dict[Level, str] = {
    "noticeable": "Recovery fine-tuning regains a part of it; removing less keeps more.",
    "strong": "Remove less, calibrate on text of this kind, or add recovery fine-tuning.",
    "severe": "Not usable as it is: remove less, or add recovery fine-tuning.",
}
_KINDS = {"in": ", text like the calibration's", "out": ", unseen text"}
_STANDARD_ERRORS = 2.0
"""Differences of task scores within this many standard errors do not count as a loss."""
_FACTOR_FROM = 3.0
"""Perplexity ratio from which the increase is written as a factor."""


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """Perplexities of both models on one text."""

    name: str
    dense: float
    compressed: float
    domain: Domain | None = None

    @property
    def ratio(self) -> float:
        """Perplexity ratio, compressed / dense."""
        return self.compressed / self.dense


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Verdict with its reasons, as whole sentences but for the title."""

    level: Level
    title: str
    tone: Tone
    reasons: tuple[str, ...]
    advice: str | None = None

    @property
    def text(self) -> str:
        """The whole verdict as one paragraph."""
        return " ".join((f"{self.title}.", *self.reasons, *((self.advice,) if self.advice else ())))


def report_verdict(report: CompressionReport) -> Verdict:
    """Return the verdict on the result of a report."""
    tasks = () if report.evaluation is None else report.evaluation.tasks
    return verdict(scored_texts(report), tasks)


def scored_texts(report: CompressionReport) -> tuple[ScoredText, ...]:
    """Return the scored texts of a report with their domains."""
    if report.evaluation is None:
        return ()
    seen = report.config.seen_sources
    return tuple(
        ScoredText(
            name=text.text,
            dense=text.dense,
            compressed=text.compressed,
            # Reports of earlier versions name no domain.
            domain=text.domain or domain_of(text.text, seen),
        )
        for text in report.evaluation.perplexity
    )


def verdict(texts: Sequence[ScoredText], tasks: Sequence[TaskComparison]) -> Verdict:
    """Return the verdict on scores: the worse one of the worst text and the worst task.

    Texts of the calibration's domain count only where no other text was scored.

    Args:
        texts: perplexities, of any domain.
        tasks: scores of both models in tasks.
    """
    worst = worst_text(texts)
    if worst is None and not tasks:
        return Verdict(
            level="unknown",
            title="Quality was not measured",
            tone="info",
            reasons=("The loss of quality is unknown.",),
            advice="Evaluate the result on text of your own.",
        )
    ratio = 1.0 if worst is None else worst.ratio
    lowest = min(tasks, key=retained_score, default=None)
    retained = 1.0 if lowest is None else retained_score(lowest)
    threshold = _threshold(ratio, retained)
    reasons = [] if worst is None else [_text_reason(worst)]
    reasons += [] if lowest is None else [_task_reason(lowest)]
    title, tone = threshold.title, threshold.tone
    if worst is not None and worst.domain == "in":
        title += " on calibration text"
        tone = "info" if tone == "ok" else tone
        reasons.append("No unseen text was scored: real use is likely worse.")
    return Verdict(
        level=threshold.level,
        title=title,
        tone=tone,
        reasons=tuple(reasons),
        advice=_ADVICE.get(threshold.level),
    )


def worst_text(texts: Sequence[ScoredText]) -> ScoredText | None:
    """Return the text with the largest ratio among the unseen ones, else among all."""
    unseen = [text for text in texts if text.domain != "in"]
    return max(unseen or texts, key=lambda text: text.ratio, default=None)


def retained_score(task: TaskComparison) -> float:
    """Return the retained fraction of a task's score; 1 for a loss within its standard errors."""
    error = math.hypot(task.dense_stderr or 0.0, task.compressed_stderr or 0.0)
    loss = task.dense - task.compressed if task.higher_is_better else task.compressed - task.dense
    return 1.0 if loss <= _STANDARD_ERRORS * error else task.ratio


def _threshold(perplexity_ratio: float, task_ratio: float) -> Threshold:
    """Return the first level whose limits hold; the last one for figures that are no numbers."""
    levels = (
        threshold
        for threshold in THRESHOLDS
        if perplexity_ratio <= threshold.max_perplexity_ratio
        and task_ratio >= threshold.min_task_ratio
    )
    return next(levels, THRESHOLDS[-1])


def _text_reason(text: ScoredText) -> str:
    kind = _KINDS.get(text.domain or "", "")
    values = f"({number(text.dense)} → {number(text.compressed)})"
    name = text_name(text.name)
    if text.ratio >= _FACTOR_FROM:
        return f"Perplexity is {times(text.ratio)} the original's on {name}{kind} {values}."
    change = short_change(text.ratio)
    if change.startswith("±"):
        return f"Perplexity is that of the original on {name}{kind} {values}."
    verb = "rose" if change.startswith("+") else "fell"
    return f"Perplexity {verb} {change[1:]} on {name}{kind} {values}."


def _task_reason(task: TaskComparison) -> str:
    retained = retained_score(task)
    if retained >= 1.0:
        return "No task lost more than its standard error."
    score = f"{percent(retained)} of the original's {task.metric}"
    return f"{task.task} keeps {score}, the least of all tasks."
