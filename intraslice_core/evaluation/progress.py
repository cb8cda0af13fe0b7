"""Progress of a comparison: the shares of its parts, and callbacks that know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from intraslice_core.config import EvaluationConfig
from intraslice_core.evaluation.tasks import OpenedTasks
from intraslice_core.progress import ProgressEvent, ProgressListener, Stage

Report = Callable[[str, float], None]
"""Callback for progress: a message and a fraction in [0, 1]."""

_SPEED_SHARE = 0.1
"""Share of the evaluation's progress that the speed takes where nothing else is known."""
_TASK_TOKENS = 200
"""Tokens of a task example: four answers of some 50 tokens, as in ARC and HellaSwag."""


@dataclass(frozen=True, kw_only=True)
class ScoringShares:
    """Shares of the texts and of the tasks in the scoring of one model."""

    texts: float
    tasks: float
    task_tokens: int
    """Expected tokens of all tasks."""


def scoring_shares(config: EvaluationConfig, tasks: OpenedTasks | None) -> ScoringShares:
    """Return the shares of texts and tasks, by their tokens."""
    task_tokens = 0 if tasks is None else _TASK_TOKENS * tasks.examples
    text_tokens = len(config.perplexity) * config.max_tokens
    share = task_tokens / max(task_tokens + text_tokens, 1)
    return ScoringShares(texts=1.0 - share, tasks=share, task_tokens=task_tokens)


def part_ends(
    seconds: tuple[float, float, float] | None, *, measures_speed: bool
) -> tuple[float, float]:
    """Return the finished fractions after the dense and after the compressed model's scores."""
    speed = _SPEED_SHARE if measures_speed else 0.0
    dense, compressed, speed = seconds or ((1 - speed) / 2, (1 - speed) / 2, speed)
    total = dense + compressed + speed
    return dense / total, (dense + compressed) / total


def progress_of(on_progress: ProgressListener, index: int, ends: tuple[float, float]) -> Report:
    """Return a callback for the scoring progress of the dense (0) or the compressed (1) model."""
    name = ("dense", "compressed")[index]
    begin, end = (0.0, *ends)[index : index + 2]

    def report(message: str, fraction: float) -> None:
        on_progress(
            ProgressEvent(
                stage=Stage.EVALUATE,
                message=f"{name} model: {message}",
                fraction=begin + (end - begin) * min(fraction, 1.0),
            )
        )

    return report
