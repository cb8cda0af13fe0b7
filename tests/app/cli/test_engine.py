"""The engine's commands on a tiny model: results, errors and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import compress
from app.cli.main import app
from intraslice_core.errors import QualityGateError, VerificationError
from intraslice_core.text_sources import FLATTERS
from tests.intraslice_core.tiny_models import tiny_llama

PROGRAM = "from app.cli.main import app; app()"
REPOSITORY = Path(compress.__file__).parents[2]
SMALL = ["--samples", "4", "--sequence-length", "64", "--round-to", "2", "--dtype", "float32"]
SMALL += ["--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return file


def run(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def compressed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed checkpoint, created by the command itself."""
    folder = tmp_path_factory.mktemp("compressed")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    result = run(
        *("compress", model, "--out", folder / "out", "--calibration", folder / "text.txt"),
        *("--evaluate", folder / "text.txt", "--no-benchmark", *SMALL),
        *("--plot", folder / "shapes.svg"),
    )
    assert result.exit_code == 0, result.output
    assert (folder / "shapes.svg").read_text().startswith("<svg ")
    for expected in (
        "MLP width",
        "parameters",
        "bytes of weights",
        "perplexity",
        str(folder / "out"),
    ):
        assert expected in result.stdout
    assert "[compress]" in result.stderr
    return folder / "out"


def test_compress_writes_a_smaller_checkpoint(model, compressed):
    sizes = [
        sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        for directory in (model, compressed)
    ]
    assert sizes[1] < sizes[0]


def test_json_goes_alone_to_stdout(model, text, tmp_path):
    result = run(
        *("compress", model, "--out", tmp_path / "out", "--calibration", text),
        *("--no-evaluation", "--json", "--ratio", "0.2", *SMALL),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["config"]["ratio"] == 0.2
    assert report["params_after"] < report["params_before"]
    assert report["evaluation"] is None


def test_several_sources_are_a_mixture_and_in_domain_evaluation_is_a_warning(model, text, tmp_path):
    sources = ["--calibration", f"{text}=2", "--calibration", "pycode", "--calibration", "chat=1"]
    options = [*sources, "--evaluate", "pycode", "--no-benchmark", *SMALL]
    result = run("compress", model, "--out", tmp_path / "out", "--json", *options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["config"]["calibration"]["source"] == [
        {"source": str(text), "weight": 2.0},
        {"source": "pycode", "weight": 1.0},
        {"source": "chat", "weight": 1.0},
    ]
    assert report["warnings"] == [FLATTERS]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tokens of `text.txt` (weight 2), `pycode` (weight 1), `chat` (weight 1)" in card
    assert f"Warning: {FLATTERS}" in card
    assert str(tmp_path) not in card.partition("Calibrated on")[2]

    pair = ["evaluate", tmp_path / "out", "--dense", model, "--no-benchmark", "--max-tokens", "128"]
    assert FLATTERS in run(*pair, "--text", "chat").stderr
    other = run(*pair, "--text", "chat", "--text", "self", "--json")
    assert FLATTERS not in other.stderr
    assert [entry["text"] for entry in json.loads(other.stdout)["perplexity"]] == ["chat", "self"]
    alone = run("evaluate", tmp_path / "out", "--text", "chat")
    assert alone.exit_code == 2
    assert "written by the dense model" in alone.stderr


def test_a_size_may_be_given_instead_of_a_ratio(model, text, tmp_path):
    result = run(
        *("compress", model, "--out", tmp_path / "out", "--calibration", text),
        *("--no-evaluation", "--json", "--target-params", "60K", *SMALL),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["config"]["target_params"], report["config"]["ratio"]) == (60_000, None)
    assert report["params_after"] == pytest.approx(60_000, rel=0.005)


def test_a_compression_with_fine_tuning_reports_the_recovered_perplexity(model, tmp_path):
    options = ["--recover", "ce", "--recover-tokens", "16K", "--recover-rank", "4"]
    options += ["--recover-source", "pydoc", "--calibration", "pydoc", "--no-evaluation"]
    result = run("compress", model, "--out", tmp_path / "out", *options, *SMALL)
    assert result.exit_code == 0, result.output
    assert "fine-tuned with ce: 15,872 tokens" in result.stdout  # 31 sequences of 512
    report = json.loads((tmp_path / "out" / "intraslice_report.json").read_text())
    expected = {"loss": "ce", "max_tokens": 16_000, "rank": 4, "alpha": 8.0, "source": "pydoc"}
    assert expected.items() <= report["recovery"]["config"].items()
    held_out = report["recovery"]["held_out"]
    assert held_out["after"] < held_out["before"]


def test_a_finished_checkpoint_is_fine_tuned_into_a_new_one(model, compressed, tmp_path):
    options = ["--teacher", model, "--out", tmp_path / "out", "--loss", "ce", "--tokens", "8K"]
    options += ["--source", "pydoc", "--rank", "2", "--dtype", "float32", "--device", "cpu"]
    result = run("recover", compressed, *options, "--resume-dir", tmp_path / "kept")
    assert result.exit_code == 0, result.output
    assert "fine-tuned with ce: 7,680 tokens" in result.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "kept" / "recovery.safetensors").is_file()
    rejected = run("recover", model, *options[:2], "--out", tmp_path / "other")
    assert rejected.exit_code == 2
    assert "no compressed checkpoint" in rejected.stderr
    rejected = run("recover", compressed, *options[:2], "--out", tmp_path / "x", "--tokens", "many")
    assert rejected.exit_code == 2
    assert "--tokens" in rejected.stderr


def test_an_interrupted_run_resumes_from_its_resume_directory(model, tmp_path):
    options = [model, "--no-evaluation", *SMALL, "--json", "--resume-dir", tmp_path / "kept"]
    first = run("compress", *options, "--out", tmp_path / "first")
    assert json.loads(first.stdout)["resumed_layers"] == 0
    (tmp_path / "kept" / "layer-00002.safetensors").unlink()
    second = run("compress", *options, "--out", tmp_path / "second")
    assert json.loads(second.stdout)["resumed_layers"] == 2
    weights = "model.safetensors"
    assert (tmp_path / "first" / weights).read_bytes() == (
        tmp_path / "second" / weights
    ).read_bytes()


def test_evaluate_scores_one_model_or_a_pair(model, compressed, text):
    alone = run("evaluate", compressed, "--text", text, "--json", "--context-length", "64")
    assert alone.exit_code == 0, alone.output
    scored = json.loads(alone.stdout)["perplexity"][str(text)]
    pair = run(
        *("evaluate", compressed, "--dense", model, "--text", text, "--json"),
        *("--no-benchmark", "--context-length", "64"),
    )
    (entry,) = json.loads(pair.stdout)["perplexity"]
    assert entry["compressed"] == pytest.approx(scored["perplexity"], rel=1e-5)
    assert entry["dense"] != entry["compressed"]


def test_generate_continues_the_prompt(compressed):
    result = run("generate", compressed, "The quick", "--max-new-tokens", "5")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("The quick")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratio", "1.5"], "--ratio: Input should be less than 1"),
        (["--ratio", "0.2", "--target-params", "100M"], "--target-params: ratio already sets"),
        (["--target-bytes", "1.2X"], "--target-bytes: '1.2X' is not a number"),
        (["--target-params", "100M"], "compression.target_params: 100,000,000 parameters are more"),
        (["--allocation", "auto", "--module-cap", "2"], "--module-cap: Input should be less"),
        (["--plot", "/no/such/place/a.svg"], "--plot: /no/such/place/a.svg cannot be written"),
        (["--samples", "0"], "--samples: Input should be greater than or equal to 1"),
        (["--calibration", "pydoc=0"], "--calibration: Input should be greater than 0"),
        (["--calibration", "pydoc=two"], "unknown source 'pydoc=two'"),
        (
            ["--calibration", "self", "--calibration", "self=2"],
            "--calibration: Value error, sources 1 and 2 are the same",
        ),
        (
            ["--calibration", "self=1000", "--calibration", "pydoc"],
            "--samples: Value error, of 4 sequences source 2 gets none",
        ),
        (["--calibration", "nonsense"], "valid: pydoc; pycode; self; chat; hub:"),
        (["--exports", "gguf-q3"], "--exports: Input should be 'safetensors', 'gguf-f16' or"),
        (["--exports", "gguf-f16"], "llama.cpp runs no models of target research"),
        (["--target", "adaptive", "--allocation", "fisher"], "no shapes by allocation fisher"),
        (["--device", "gpu"], "torch knows no device 'gpu'"),
        (["--max-perplexity-ratio", "0.5"], "--max-perplexity-ratio"),
        (["--sequence-length", "4096", "--samples", "60000"], "tokens, 15000 sequences"),
    ],
)
def test_bad_input_is_one_line_and_code_2(model, tmp_path, options, message):
    result = run("compress", model, "--out", tmp_path / "out", *SMALL, *options)
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if not line.startswith("[")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_and_an_existing_output_are_bad_input(model, tmp_path):
    assert run("compress", tmp_path / "no", "--out", tmp_path / "out").exit_code == 2
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert run("compress", model, "--out", tmp_path / "taken", *SMALL).exit_code == 2
    assert run("generate", tmp_path / "no", "x").exit_code == 2


@pytest.mark.parametrize("error", [VerificationError("differs"), QualityGateError("too bad")])
def test_a_failure_is_code_1(model, tmp_path, monkeypatch, error):
    import intraslice_core.pipeline

    def fail(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(intraslice_core.pipeline, "compress_model", fail)
    result = run("compress", model, "--out", tmp_path / "out", *SMALL)
    assert result.exit_code == 1
    assert result.stderr == f"error: {error.message}\n"


def test_an_interrupt_leaves_no_files(model, tmp_path):
    command = [sys.executable, "-c", PROGRAM, "compress", str(model), "--out", "out"]
    command += [*SMALL, "--samples", "64", "--sequence-length", "1024", "--no-evaluation"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as lines:
        seen = []
        for line in lines:
            seen.append(line)
            if line.startswith("[compress]"):
                process.send_signal(signal.SIGINT)
                break
        rest = "".join(seen) + lines.read()
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.returncode == 130, rest
    assert "cancelled" in rest
    assert list(tmp_path.iterdir()) == []


def test_parsing_the_command_line_imports_no_torch():
    program = f"import sys; sys.argv = ['x', '--help']\ntry:\n    exec({PROGRAM!r})\n"
    program += "finally:\n    assert 'torch' not in sys.modules, 'torch'\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout
