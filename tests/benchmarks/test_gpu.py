"""The benchmark of GPUs: its run on tiny models, and its answer on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_named_as_such() -> None:
    done = run()
    assert done.returncode == 2
    assert "no GPU: torch sees no CUDA device on this machine" in done.stderr
    assert done.stdout == ""


def test_a_wide_model_is_not_timed_on_a_cpu() -> None:
    done = run("--device", "cpu")
    assert done.returncode == 2
    assert "use --width tiny" in done.stderr


def test_tiny_models_run_through_all_parts_on_a_cpu(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--width", "tiny", "--work-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert list(facts["parity"]) == ["llama", "gemma2"]
    for parity in facts["parity"].values():
        assert parity == {"same_plan": True, "disagreement": 0.0}
    assert facts["compression_seconds"] > 0.0
    assert {"allocate", "compress"} <= set(facts["stages"])
    assert 0.25 < facts["removed_fraction"] < 0.35
    assert [load["batch_size"] for load in facts["speed"]] == [1, 32]
    for load in facts["speed"]:
        assert all(rate > 0.0 for phase in ("prefill", "decode") for rate in load[phase].values())
    assert list(tmp_path.iterdir()) == []
