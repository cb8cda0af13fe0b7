"""Calibration text in a compression: its records, its warnings and its variety."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.errors import CalibrationUniformError
from intraslice_core.pipeline import _compress_checkpoint
from intraslice_core.progress import ProgressEvent, Stage, ignore_progress, never_cancelled
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.resume_state import ResumeState
from intraslice_core.run import OpenedModel, Run
from tests.intraslice_core.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense", num_hidden_layers=1)


def compress(
    dense: Path, out: Path, source: Any, evaluation: EvaluationConfig | None = None, **run: Any
) -> CompressionReport:
    config = CompressionConfig.model_validate(
        {
            "ratio": 0.2,
            "round_to": 1,
            "method": "magnitude",
            "device": "cpu",
            "calibration": {"samples": 8, "sequence_length": 64, **source},
        }
    )
    opened = OpenedModel(reference=str(dense), directory=dense)
    listening = {"on_progress": ignore_progress, "should_cancel": never_cancelled}
    settings = Run(**(listening | run))
    return _compress_checkpoint(opened, out, config, settings, evaluation)


def write_records(path: Path, field: str) -> str:
    """Write 1,500 records, the second of which is broken."""
    lines = [json.dumps({field: f"{number} is a number\n"}) for number in range(1500)]
    lines[1] = "{"
    path.write_text("\n".join(lines))
    return str(path)


def test_skipped_records_are_in_the_report_of_first_and_resumed_runs(dense, tmp_path):
    calibration = write_records(tmp_path / "a.jsonl", "body")
    held_out = write_records(tmp_path / "b.jsonl", "content")
    evaluation = EvaluationConfig(perplexity=(held_out,), max_tokens=64, benchmark=False)
    state = ResumeState(directory=tmp_path / "state")
    for name in ("first", "resumed"):
        report = compress(
            dense,
            tmp_path / name,
            {"source": calibration, "text_field": "body"},
            evaluation,
            resume_state=state,
        )
        skipped = [warning for warning in report.warnings if "skipped" in warning]
        assert [warning.partition(":")[0] for warning in skipped] == [held_out, calibration]
        assert all("1 of 1000 records were skipped (line 2: not JSON" in each for each in skipped)


def test_each_source_of_a_mixture_may_have_its_own_field(dense, tmp_path):
    sources = [
        {"source": write_records(tmp_path / "a.jsonl", "body"), "text_field": "body"},
        {"source": write_records(tmp_path / "b.jsonl", "note")},
        {"source": "pydoc"},
    ]
    report = compress(dense, tmp_path / "out", {"source": sources, "text_field": "note"})
    assert len(report.warnings) == 2


@pytest.mark.parametrize("text", ["a", "word ", "one two three four\n"])
def test_uniform_text_is_rejected_by_name(dense, tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(text * 10_000)
    runs = len(text)
    with pytest.raises(CalibrationUniformError, match=rf"a\.txt is too uniform: .* only {runs} "):
        compress(dense, tmp_path / "out", {"source": str(path)})


def test_uniform_text_may_be_part_of_a_mixture(dense, tmp_path):
    (tmp_path / "a.txt").write_text("a" * 10_000)
    sources = [{"source": str(tmp_path / "a.txt")}, {"source": "pydoc"}]
    assert compress(dense, tmp_path / "out", {"source": sources}).calibration_tokens == 8 * 64


def test_text_that_the_model_writes_is_progress_in_tokens(dense, tmp_path):
    events: list[ProgressEvent] = []
    sources = [{"source": "self"}, {"source": "chat"}]
    compress(dense, tmp_path / "out", {"source": sources}, on_progress=events.append)
    written = [event for event in events if "writing calibration text" in event.message]
    assert {event.stage for event in written} == {Stage.CALIBRATE}
    # Both sources together: the first token of `self`, and one more of all eight sequences.
    assert written[0].message == "writing calibration text: 16/512 tokens"
    assert events[0].fraction < written[0].fraction
