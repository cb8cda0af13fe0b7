"""`torchrun -m intraslice_core compress` prints one report and one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from app.cli.errors import reported_errors
from intraslice_core.errors import IntraSliceError, ModelNotFoundError, RankFailedError
from tests.intraslice_core.parallel.launching import launch
from tests.intraslice_core.tiny_models import tiny_llama

OPTIONS = (
    *("--method", "flap", "--round-to", "2", "--calibration", "pydoc", "--device", "cpu"),
    *("--samples", "8", "--sequence-length", "32", "--no-evaluation", "--no-verify", "--json"),
)


def test_two_processes_print_one_report_and_write_one_checkpoint(tmp_path: Path) -> None:
    dense, out = tiny_llama(tmp_path / "dense"), tmp_path / "out"
    done = launch(2, "intraslice_core", "compress", dense, "--out", out, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "flap"
    assert (out / "model.safetensors").exists()
    stages = [line for line in done.stderr.splitlines() if line.startswith("[compress]")]
    assert len(stages) == 1


@pytest.mark.parametrize(
    ("rank", "error", "is_printed"),
    [
        ("0", ModelNotFoundError("no such model"), True),
        ("1", ModelNotFoundError("no such model"), False),
        ("1", RankFailedError("process 1 of 2 was killed"), True),
    ],
)
def test_processes_print_one_error_unless_the_first_is_gone(
    rank: str,
    error: IntraSliceError,
    is_printed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(typer.Exit), reported_errors():
        raise error
    assert (f"error: {error}" in capsys.readouterr().err) == is_printed
