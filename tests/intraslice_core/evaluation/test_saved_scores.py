"""An evaluation that was stopped resumes with the next text and reports the same scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from intraslice_core.config import EvaluationConfig
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.evaluation import scoring
from intraslice_core.evaluation.comparison import Materials, evaluate_pair
from intraslice_core.evaluation.saved_scores import SavedScores
from intraslice_core.progress import never_cancelled
from intraslice_core.reports.schema import EvaluationReport
from intraslice_core.resume_state import ResumeState
from tests.intraslice_core.evaluation.test_comparison import local_tasks
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_llama, tiny_model

CONFIG = EvaluationConfig(
    perplexity=("pydoc", "pycode"),
    max_tokens=128,
    context_length=64,
    prompts=("def f",),
    benchmark=False,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    model = tiny_model()
    torch.nn.init.zeros_(model.model.layers[0].mlp.down_proj.weight)
    return tiny_llama(root / "dense"), save_checkpoint(model, root / "zeroed")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts, tasks and prompts that were scored, in order."""
    done: list[str] = []

    def count(name: str) -> None:
        score: Callable[..., Any] = getattr(scoring, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            result = score(*arguments, **options)
            done.append(name)
            return result

        monkeypatch.setattr(scoring, name, counted)

    for name in ("perplexity", "score_tasks", "continuations", "written_tokens"):
        count(name)
    return done


def evaluate(
    pair: tuple[Path, Path],
    state: Path | None,
    *,
    materials: Materials,
    config: EvaluationConfig = CONFIG,
    key: str = "key",
    should_cancel: Callable[[], bool] = never_cancelled,
) -> EvaluationReport:
    unsaved: list[str] = []
    if state is not None:
        saved = SavedScores(
            resume_state=ResumeState(directory=state), key=key, on_unsaved=unsaved.append
        )
        materials = replace(materials, saved=saved)
    report = evaluate_pair(*pair, config, materials=materials, should_cancel=should_cancel)
    assert unsaved == []
    return report


def test_a_stopped_evaluation_scores_nothing_twice(
    pair: tuple[Path, Path], tmp_path: Path, scored: list[str]
) -> None:
    materials = Materials(tasks=local_tasks(tmp_path))
    whole = evaluate(pair, None, materials=materials)
    parts = list(scored)
    assert parts == ["perplexity", "perplexity", "score_tasks", "continuations"] * 2
    scored.clear()
    # Each attempt is stopped at the first check after one more part.
    while len(scored) < len(parts):
        finished = len(scored)
        try:
            evaluate(
                pair,
                tmp_path / "state",
                materials=materials,
                should_cancel=lambda finished=finished: len(scored) > finished,
            )
        except CompressionCancelledError:
            assert len(scored) > finished
    assert scored == parts
    report = evaluate(pair, tmp_path / "state", materials=materials)
    assert scored == parts
    assert report == whole


def test_text_that_the_model_wrote_is_not_written_again(
    pair: tuple[Path, Path], tmp_path: Path, scored: list[str]
) -> None:
    config = CONFIG.model_copy(update={"perplexity": ("self",), "prompts": ()})
    first, second = (
        evaluate(pair, tmp_path / "state", config=config, materials=Materials()) for _ in range(2)
    )
    assert first == second
    assert scored.count("written_tokens") == 1


def test_scores_of_other_models_and_of_changed_texts_are_not_used(
    pair: tuple[Path, Path], tmp_path: Path, scored: list[str]
) -> None:
    text = tmp_path / "text.txt"
    config = CONFIG.model_copy(update={"perplexity": (str(text),), "prompts": ()})
    for key, words in (("key", "one two three "), ("other", "one two three "), ("other", "four ")):
        text.write_text(100 * words)
        evaluate(pair, tmp_path / "state", config=config, key=key, materials=Materials())
    assert scored.count("perplexity") == 2 * 3
