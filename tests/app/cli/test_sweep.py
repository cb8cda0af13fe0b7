"""`intraslice sweep` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app.cli import sweep
from tests.intraslice_core.tiny_models import tiny_llama

SMALL = ["--samples", "4", "--sequence-length", "64", "--round-to", "2", "--dtype", "float32"]
SMALL += ["--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


def run(*arguments: str | Path):
    app = typer.Typer()
    sweep.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_table_has_a_row_per_ratio_and_a_second_run_resumes(model, tmp_path):
    options = [model, "--ratios", "0.2:0.4:0.2", "--out", tmp_path / "out", *SMALL]
    options += ["--evaluate", "pydoc", "--no-benchmark", "--no-verify"]
    first = run(*options, "--plots")
    assert first.exit_code == 0, first.output
    for expected in ("parameters", "bytes", "perplexity, pydoc", "relative cost", "dense"):
        assert expected in first.stdout
    sizes, _, qualities = first.stdout.partition("quality by text")
    rows = [line.split() for line in sizes.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["dense", "0.2", "0.4"]
    by_text = [line.split()[1:6:2] for line in qualities.splitlines() if "│" in line]
    assert by_text == [[ratio, "pydoc", "in-domain"] for ratio in ("0.2", "0.4")]
    assert rows[1][-2] == "1.00"
    assert first.stderr.count("[compress]") == 2
    for ratio in ("0.2", "0.4"):
        assert (tmp_path / "out" / f"ratio-{ratio}.svg").read_text().startswith("<svg ")
    second = run(*options, "--json")
    assert second.exit_code == 0, second.output
    assert "[compress]" not in second.stderr
    summary = json.loads(second.stdout)
    assert summary == json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [point["ratio"] for point in summary["points"]] == [0.2, 0.4]


def test_a_rejected_ratio_is_code_1_and_the_others_are_kept(model, tmp_path):
    result = run(
        *(model, "--ratios", "0.4,0", "--out", tmp_path / "out", *SMALL),
        *("--no-benchmark", "--no-verify"),
        *("--samples", "16", "--sequence-length", "32", "--max-perplexity-ratio", "1.0001"),
        *("--method", "magnitude"),
    )
    assert result.exit_code == 1, result.output
    assert "error: ratio 0.4: " in result.stderr
    assert (tmp_path / "out" / "ratio-0.0" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratios", "0.1:0.5"], "--ratios: '0.1:0.5' is not a range of ratios (write START:"),
        (["--ratios", "0.1,1.5"], "--ratios: ratio 1.5 is out of range"),
        (["--ratios", "0.2", "--samples", "0"], "--samples: Input should be greater than"),
        (["--ratios", "0.2", "--max-perplexity-ratio", "0.5"], "--max-perplexity-ratio"),
        (["--ratios", "0.2", "--devices", "2"], "devices: a sweep or a comparison of methods runs"),
    ],
)
def test_bad_input_is_one_line_and_code_2(model, tmp_path, options, message):
    result = run(model, "--out", tmp_path / "out", *SMALL, *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_rejected(model, tmp_path):
    (tmp_path / "file").touch()
    result = run(model, "--ratios", "0.2", "--out", tmp_path / "file", *SMALL)
    assert result.exit_code == 2
    assert "--out" in result.stderr


def test_offloading_to_a_file_is_rejected_and_to_a_directory_leaves_it_empty(model, tmp_path):
    (tmp_path / "file").touch()
    options = [model, "--ratios", "0.2", "--out", tmp_path / "out", *SMALL, "--no-evaluation"]
    rejected = run(*options, "--offload-dir", tmp_path / "file")
    assert rejected.exit_code == 2
    assert "--offload-dir" in rejected.stderr
    done = run(*options, "--offload-dir", tmp_path / "states", "--no-verify")
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "states").iterdir()) == []


def test_a_sweep_accepts_the_settings_of_compress_and_requires_them_to_resume(model, tmp_path):
    options = [model, "--ratios", "0.3", "--out", tmp_path / "out", *SMALL, "--no-benchmark"]
    options += ["--recover", "ce", "--recover-tokens", "512", "--evaluate", "pydoc", "--no-verify"]
    first = run(*options, "--prompts", "def main", "--json")
    assert first.exit_code == 0, first.output
    report = json.loads((tmp_path / "out" / "ratio-0.3" / "intraslice_report.json").read_text())
    assert report["recovery"]["tokens"] > 0
    assert [entry["prompt"] for entry in report["evaluation"]["continuations"]] == ["def main"]
    again = run(*options, "--prompts", "def main")
    assert again.exit_code == 0
    assert "[compress]" not in again.stderr
    other = run(*options, "--prompts", "class A")
    assert other.exit_code == 2
    assert "other settings" in other.stderr
