"""Processes of a launcher train together as one process with the whole batch does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from intraslice_core.pipeline import compress_model
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport, RecoveryReport
from tests.intraslice_core.finetuning import launched
from tests.intraslice_core.finetuning.training_runs import compression
from tests.intraslice_core.tiny_models import tiny_llama


def launch(*arguments: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={launched.PROCESSES}", "-m", launched.__name__]
    subprocess.run(
        [*command, *map(str, arguments)],
        check=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_have_the_losses_of_one_with_twice_the_batch_and_resume(
    tmp_path: Path,
) -> None:
    dense = tiny_llama(tmp_path / "dense")
    compressed = tmp_path / "compressed"
    compress_model(str(dense), compressed, compression(), verify=False)
    launch(compressed, dense, tmp_path)
    settings = launched.settings(launched.PROCESSES * launched.BATCH_SIZE)
    single = launched.train(compressed, dense, tmp_path / "single", settings)
    together = CompressionReport.model_validate_json(
        (tmp_path / "together" / REPORT_FILE).read_bytes()
    ).recovery
    resumed = RecoveryReport.model_validate_json((tmp_path / "resumed.json").read_bytes())
    assert single is not None
    assert together is not None
    assert [report.processes for report in (single, together, resumed)] == [1, 2, 2]
    assert len(together.losses) == launched.STEPS
    assert together.losses[-1].tokens == launched.SEQUENCES * launched.LENGTH
    assert [point.loss for point in together.losses] == pytest.approx(
        [point.loss for point in single.losses], rel=1e-5
    )
    assert resumed.losses == together.losses
    weights = {
        name: load_file(tmp_path / name / "model.safetensors")
        for name in ("compressed", "single", "together", "resumed")
    }
    for name, expected in weights["single"].items():
        torch.testing.assert_close(weights["together"][name], expected, atol=1e-4, rtol=1e-3)
        assert torch.equal(weights["resumed"][name], weights["together"][name])
    assert any(
        not torch.equal(weights["compressed"][name], tensor)
        for name, tensor in weights["single"].items()
    )
