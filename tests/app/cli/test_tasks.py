"""`intraslice evaluate --tasks`: local tasks on a real checkpoint, alone and against dense."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from app.cli.main import app
from tests.intraslice_core.evaluation.local_tasks import write_choice_task, write_questions
from tests.intraslice_core.tiny_models import tiny_llama

SHORT = ["--max-tokens", "128", "--context-length", "64", "--no-benchmark", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture(scope="module")
def compressed(dense: Path) -> Path:
    """A compressed checkpoint, whose loading needs the checkpoint's own code."""
    small = ["--samples", "4", "--sequence-length", "64", "--round-to", "2", "--dtype", "float32"]
    out = dense.parent / "compressed"
    options = ["--calibration", "pydoc", "--no-evaluation", "--no-verify", *small]
    result = run("compress", dense, "--out", out, "--ratio", "0.4", *options)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def place(tmp_path: Path) -> Path:
    data = write_questions(tmp_path / "tasks", [0, 1, 2, 1, 0, 2, 2, 1])
    write_choice_task(tmp_path / "tasks", "letters", data)
    return tmp_path / "tasks"


def run(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_both_models_are_scored_on_the_same_examples(dense, compressed, place):
    options = ["--tasks", "letters", "--include-path", place, "--limit", "6", *SHORT, "--json"]
    pair = run("evaluate", compressed, "--baseline", dense, *options)
    assert pair.exit_code == 0, pair.output
    scores = {score["metric"]: score for score in json.loads(pair.stdout)["tasks"]}
    assert set(scores) == {"acc", "acc_norm"}
    for directory, side in ((dense, "dense"), (compressed, "compressed")):
        alone = run("evaluate", directory, *options)
        assert alone.exit_code == 0, alone.output
        for score in json.loads(alone.stdout)["tasks"]:
            assert (score["task"], score["examples"]) == ("letters", 6)
            assert score["value"] == scores[score["metric"]][side]


def test_scores_are_a_row_of_the_table(dense, compressed, place):
    options = ["--tasks", "letters", "--include-path", place, *SHORT]
    pair = run("evaluate", compressed, "--dense", dense, *options)
    assert pair.exit_code == 0, pair.output
    (row,) = (line for line in pair.stdout.splitlines() if "acc, letters" in line)
    assert row.count("±") == 2
    alone = run("evaluate", dense, *options)
    assert "letters: acc " in alone.stdout


def test_each_load_is_a_table(dense, compressed):
    pair = run("evaluate", compressed, "--dense", dense, *SHORT, "--speed-grid", "1x8,2x16")
    assert pair.exit_code == 0, pair.output
    for expected in (
        "1 x 8 tokens",
        "2 x 16 tokens",
        "KV cache, bytes per token",
        "first token, ms",
    ):
        assert expected in pair.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "letters", "--include-path", "/no/place"], "include_path: /no/place is no"),
        (["--tasks", "../letters"], "--tasks: String should match pattern"),
        (["--tasks", "a", "--limit", "0"], "--limit: Input should be greater than"),
        (["--speed-grid", "8"], "--speed-grid: '8' is not a load"),
        (["--speed-grid", "0x8"], "--speed-grid: Input should be greater than or equal to 1"),
        (["--speed-grid", "1x8"], "--speed-grid: speed is measured as a comparison of two models"),
    ],
)
def test_an_invalid_measurement_is_an_error_in_one_line(dense, options, message):
    result = run("evaluate", dense, *SHORT, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_gate_on_tasks_needs_tasks(dense, tmp_path):
    result = run("compress", dense, "--out", tmp_path / "out", "--min-task-ratio", "0.9")
    assert result.exit_code == 2
    assert "min_task_ratio needs tasks" in result.stderr
