"""`torchrun -m intraslice_core compress` speaks with one voice."""

from __future__ import annotations

import json
from pathlib import Path

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


def test_two_processes_print_one_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = launch(2, "intraslice_core", "compress", missing, "--out", tmp_path / "out", *OPTIONS)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(missing) in errors[0]
