"""Forward passes and clean processes report their sub-steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from intraslice_core.config import EvaluationConfig
from intraslice_core.errors import CompressionCancelledError, MeasurementError
from intraslice_core.evaluation import forward_meter
from intraslice_core.evaluation.clean_process import CleanProcess
from intraslice_core.evaluation.forward_meter import metered, report_layers
from intraslice_core.evaluation.progress import part_ends, scoring_shares
from intraslice_core.evaluation.tasks import OpenedTasks
from intraslice_core.progress import never_cancelled
from intraslice_core.substeps import substeps_to
from tests.intraslice_core.tiny_models import tiny_family_model, tiny_model

TOKENS = torch.arange(24).view(2, 12)


@pytest.fixture
def substeps() -> Iterator[list[str]]:
    messages: list[str] = []
    with substeps_to(messages.append):
        yield messages


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_a_forward_pass_is_reported_after_every_layer(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_meter, "_PAUSE_SECONDS", 0.0)
    model = tiny_model() if family == "llama" else tiny_family_model(family)
    layers, done = model.config.num_hidden_layers, list[float]()
    with metered(model, 2 * TOKENS.numel(), done.append):
        model(TOKENS)
        model(TOKENS[:, :6])
        model(TOKENS[:, 6:])
    assert len(done) == 3 * layers
    assert done == sorted(done)
    assert done[layers - 1] == pytest.approx(0.5)
    assert done[-1] == pytest.approx(1.0)
    model(TOKENS)
    assert len(done) == 3 * layers, "the hooks are removed"


def test_a_forward_pass_is_stopped_between_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_meter, "_PAUSE_SECONDS", 0.0)
    model = tiny_model()

    def stop(_done: float) -> None:
        raise CompressionCancelledError("stopped")

    with pytest.raises(CompressionCancelledError), metered(model, 24, stop):
        model(TOKENS)


def test_training_steps_report_layers_in_both_directions(substeps: list[str]) -> None:
    model = tiny_model()
    report_layers(model)
    model(TOKENS, labels=TOKENS).loss.backward()
    layers = [f"layer {number}/3" for number in (1, 2, 3)]
    assert substeps[:3] == layers
    assert substeps[3:] == [f"gradient of {layer}" for layer in reversed(layers)]


def clean_process(tmp_path: Path, code: str) -> CleanProcess:
    program = tmp_path / "program.py"
    program.write_text(f"import pathlib, sys, time\n{code}")
    return CleanProcess(
        program=str(program), arguments=[], make_error=lambda reason: MeasurementError(reason)
    )


def test_lines_of_a_clean_process_are_substeps(tmp_path: Path, substeps: list[str]) -> None:
    code = (
        "print('step: loading', flush=True); print('a warning', flush=True); time.sleep(0.5)\n"
        "print('step: answering', flush=True); time.sleep(0.5)\n"
        "pathlib.Path(sys.argv[2]).write_text('7')\n"
    )
    assert clean_process(tmp_path, code).run({}, never_cancelled) == 7
    assert substeps[-1] == "answering"
    assert set(substeps) <= {"loading", "answering"}


def test_a_substep_is_not_the_error_of_a_clean_process(tmp_path: Path) -> None:
    code = "print('no such file'); print('step: loading'); sys.exit(1)\n"
    with pytest.raises(MeasurementError, match="no such file"):
        clean_process(tmp_path, code).run({}, never_cancelled)


def test_parts_of_an_evaluation_have_shares_of_their_seconds() -> None:
    assert part_ends((6.0, 2.0, 2.0), measures_speed=True) == pytest.approx((0.6, 0.8))
    assert part_ends(None, measures_speed=False) == pytest.approx((0.5, 1.0))
    assert part_ends(None, measures_speed=True) == pytest.approx((0.45, 0.9))


def test_tasks_have_the_share_of_their_examples() -> None:
    config = EvaluationConfig(perplexity=("pydoc",), max_tokens=1000, tasks=("arc_easy",))
    assert scoring_shares(config, None).tasks == 0.0

    class Task:
        eval_docs = range(15)

    tasks = OpenedTasks(loaded={"tasks": {"arc_easy": Task()}}, limit=5, batch_size=8)
    shares = scoring_shares(config, tasks)
    assert (shares.texts, shares.tasks) == pytest.approx((0.5, 0.5))
    assert shares.task_tokens == 1000
