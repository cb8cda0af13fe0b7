"""`method: auto` tries every method that fits, and runs the one of least divergence in full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from app.cli.report_tables import print_report
from intraslice_core import pipeline
from intraslice_core.allocation import unit_shapes
from intraslice_core.config import (
    METHOD_DESCRIPTIONS,
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
)
from intraslice_core.errors import CompressionCancelledError, ConfigurationError
from intraslice_core.evaluation.held_out import HeldOutReference
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.methods import METHODS
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.reports.page import report_page
from intraslice_core.reports.page_contents import ReportPage
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.reports.tournament import TournamentReport
from intraslice_core.resume_state import ResumeState
from intraslice_core.tournament.trials import Tournament
from tests.intraslice_core.tiny_models import tiny_llama

CONFIG = CompressionConfig(
    method="auto",
    ratio=0.3,
    calibration=CalibrationConfig(source="pydoc", samples=16, sequence_length=32),
    round_to=2,
    dtype="float32",
    device="cpu",
)


@pytest.fixture(scope="module", autouse=True)
def all_trials_are_run() -> Iterator[None]:
    """No trial is left out for lack of time: on a busy machine some would be (test_decision)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tournament, "_affords", lambda *_: True)
        yield


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("auto") / "dense")


@pytest.fixture(scope="module")
def chosen(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompressionReport]:
    """Return the result of `auto` and its report."""
    out = tmp_path_factory.mktemp("chosen") / "out"
    return out, compress_model(str(dense), out, CONFIG, verify=False)


def tournament_of(report: CompressionReport) -> TournamentReport:
    assert report.tournament is not None
    return report.tournament


def test_the_winner_is_the_candidate_of_least_divergence(
    chosen: tuple[Path, CompressionReport],
) -> None:
    report = chosen[1]
    tournament = tournament_of(report)
    assert {candidate.method for candidate in tournament.candidates} == set(METHOD_DESCRIPTIONS)
    measured = [candidate for candidate in tournament.candidates if candidate.kl is not None]
    assert len(measured) > 5
    divergences = [candidate.kl for candidate in measured]
    assert divergences == sorted(divergences)
    assert measured[0].method == tournament.winner == report.method == report.config.method
    assert measured[0].standard_error is None
    for candidate in measured:
        assert candidate.seconds is not None
        assert candidate.seconds > 0.0
        means = candidate.kl_by_text
        assert [*means] == ["text", "self"]  # the tiny model has no chat template
        mean = sum(means.values()) / 2
        assert candidate.kl == pytest.approx(mean + 0.5 * max(means.values()))
    assert all(candidate.standard_error is not None for candidate in measured[1:])
    assert tournament.reason.startswith(f"{tournament.winner} diverged least")


def test_the_result_is_that_of_the_winner_alone(
    dense: Path, chosen: tuple[Path, CompressionReport], tmp_path: Path
) -> None:
    out, report = chosen
    alone = CONFIG.model_copy(update={"method": report.method})
    compress_model(str(dense), tmp_path / "alone", alone, verify=False)
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    card = (out / "README.md").read_text()
    assert "The method was chosen by a tournament" in card
    assert all(f"| {method} |" in card for method in METHOD_DESCRIPTIONS)


def test_only_methods_that_have_the_target_and_the_allocation_compete(
    dense: Path, tmp_path: Path
) -> None:
    stock = CONFIG.model_copy(update={"target": "stock", "allocation": "uniform"})
    report = compress_model(str(dense), tmp_path / "out", stock, verify=False)
    reasons = {candidate.method: candidate.reason for candidate in tournament_of(report).candidates}
    assert "target stock does not support method flap" in str(reasons["flap"])
    assert "does not support allocation uniform" in str(reasons["shortgpt"])
    assert reasons["intraslice_plus"] is None
    assert reasons["wanda_sp"] is None


def test_a_request_that_no_method_can_meet_is_an_error_of_the_default_method(
    dense: Path, tmp_path: Path
) -> None:
    stages: list[Stage] = []
    with pytest.raises(ConfigurationError, match="cannot be removed"):
        compress_model(
            str(dense),
            tmp_path / "out",
            CONFIG.model_copy(update={"ratio": 0.99}),
            on_progress=lambda event: stages.append(event.stage),
        )
    assert set(stages) <= {Stage.LOAD, Stage.TOURNAMENT}


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Methods of the trials that were compressed."""
    done: list[str] = []
    original = pipeline._compress_trial

    def counting(*arguments: object) -> object:
        done.append(arguments[2].method)  # type: ignore[attr-defined]
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "_compress_trial", counting)
    return done


@contextmanager
def another_number_of_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def test_a_killed_tournament_resumes_with_the_same_winner(
    dense: Path, chosen: tuple[Path, CompressionReport], tmp_path: Path, trials: list[str]
) -> None:
    events: list[ProgressEvent] = []

    def in_the_third_trial() -> bool:
        return bool(events) and "trial 3/" in events[-1].message

    state = ResumeState(directory=tmp_path / "state")
    with pytest.raises(CompressionCancelledError):
        compress_model(
            str(dense),
            tmp_path / "out",
            CONFIG,
            verify=False,
            resume_state=state,
            on_progress=events.append,
            should_cancel=in_the_third_trial,
        )
    assert not (tmp_path / "out").exists()
    finished = trials[:2]
    trials.clear()

    def resumed(out: str) -> CompressionReport:
        state = ResumeState(directory=tmp_path / "state")
        return compress_model(str(dense), tmp_path / out, CONFIG, verify=False, resume_state=state)

    report = resumed("out")
    assert not set(finished) & set(trials)
    expected = {each.method: each.kl for each in tournament_of(chosen[1]).candidates}
    assert {each.method: each.kl for each in tournament_of(report).candidates} == expected
    assert report.method == chosen[1].method
    made = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert made == (chosen[0] / "model.safetensors").read_bytes()
    trials.clear()
    with another_number_of_threads():
        again = resumed("again")
    assert trials == [], "several devices on one machine have fewer threads each"
    assert again.tournament is not None
    assert again.method == report.method


def test_trials_leave_nothing_and_are_a_stage_of_the_progress(dense: Path, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    compress_model(str(dense), tmp_path / "out", CONFIG, verify=False, on_progress=events.append)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages[:3] == [Stage.LOAD, Stage.TOURNAMENT, Stage.CALIBRATE]
    steps = [event for event in events if event.stage is Stage.TOURNAMENT]
    assert any("intraslice_plus: " in event.message for event in steps)
    assert any("comparing with the dense model" in event.message for event in steps)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert 0.0 < steps[-1].fraction < 1.0
    assert any(event.eta_seconds is not None for event in steps)
    assert not [path for path in tmp_path.rglob("*") if "trial" in path.name]


def test_the_page_and_the_tables_show_the_trials(
    chosen: tuple[Path, CompressionReport], capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = chosen
    page = report_page(ReportPage(report=report))
    assert "Choice of the method" in page
    assert f"{report.method}, chosen by auto" in page
    print_report(report, out, as_json=False)
    printed = capsys.readouterr().out
    assert f"{report.method} chosen by auto in" in printed
    assert tournament_of(report).reason in printed
    for candidate in tournament_of(report).candidates:
        assert f'<th scope="row">{candidate.method}</th>' in page
        assert candidate.method in printed


def test_an_evaluation_text_that_cannot_be_read_is_rejected_before_the_trials(
    dense: Path, tmp_path: Path, trials: list[str]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(Exception, match=r"empty\.txt"):
        compress_model(
            str(dense),
            tmp_path / "out",
            CONFIG,
            evaluation=EvaluationConfig(perplexity=(str(empty),), max_tokens=64),
        )
    assert trials == []


def test_methods_share_the_moments_of_the_trials_text(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    original = unit_shapes.measure_activations

    def counting(*arguments: object, **named: object) -> object:
        measured.append(1)
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(unit_shapes, "measure_activations", counting)
    report = compress_model(str(dense), tmp_path / "out", CONFIG, verify=False)
    assert METHODS[report.method].units is None  # its own run measures none
    tried = {each.method for each in tournament_of(report).candidates if each.kl is not None}
    removals = [METHODS[method].units for method in tried]
    dense_units = [units for units in removals if units is not None and units.inputs == "dense"]
    assert len(dense_units) > 2
    # One pass for all; further shots score what is left in their own way.
    assert len(measured) == 1 + sum(units.shots - 1 for units in dense_units)


def test_divergences_are_those_of_the_whole_models_logits(
    dense: Path, chosen: tuple[Path, CompressionReport]
) -> None:
    tokens = torch.randint(3, 259, (5, 24), generator=torch.Generator().manual_seed(0))
    original, compressed = (
        load_model(directory, dtype="float32", device="cpu") for directory in (dense, chosen[0])
    )
    reference = HeldOutReference.of(original, tokens, (), batch_size=2, should_cancel=lambda: False)
    divergences = reference.divergences(compressed, lambda: False)
    assert divergences.shape == (5, 23)

    def log_probabilities(model: PreTrainedModel) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=tokens).logits[:, :-1].double().log_softmax(-1)

    p, q = log_probabilities(original), log_probabilities(compressed)
    expected = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(divergences, expected, rtol=1e-4, atol=1e-6)
    assert torch.all(reference.divergences(original, lambda: False) < 1e-9)
