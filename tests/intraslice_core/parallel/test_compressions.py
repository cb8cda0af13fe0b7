"""Several processes write the checkpoint that one process writes, up to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from intraslice_core.errors import CompressionCancelledError
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.parallel import compressions
from tests.intraslice_core.parallel.comparison import (
    LOOSE_TOLERANCE,
    TOLERANCE,
    assert_same_model,
    report_in,
)
from tests.intraslice_core.tiny_models import tiny_llama

TIMEOUT_SECONDS = 600
AMPLIFYING = ("slicegpt", "spp", "disp")
"""Compressions that amplify rounding: up to 4e-4 of a tensor's largest element was measured."""
CASES = [(2, name) for name in compressions.CONFIGS] + [(3, name) for name in compressions.IN_THREE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one, two and three processes, in a directory for each number."""
    folder = tmp_path_factory.mktemp("compressions")
    dense = tiny_llama(folder / "dense", **compressions.MODEL)
    compressions.compress_all(dense, folder / "1", [*compressions.CONFIGS])
    done = subprocess.run(
        [sys.executable, "-m", compressions.__name__, str(dense), str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("processes", "name"), CASES)
def test_processes_choose_the_plan_of_one_and_its_weights_up_to_rounding(
    processes: int, name: str, folder: Path
) -> None:
    tolerance = LOOSE_TOLERANCE if name in AMPLIFYING else TOLERANCE
    assert_same_model(folder / str(processes) / name, folder / "1" / name, tolerance)


@pytest.mark.parametrize("name", ["intraslice_plus", "flap"])
def test_all_ranks_get_the_report_of_the_first(name: str, folder: Path) -> None:
    written = report_in(folder / "2" / name)
    for rank in range(2):
        text = (folder / "2" / f"{name}-{rank}.json").read_text()
        assert CompressionReport.model_validate_json(text).plan == written.plan


def test_other_ranks_free_their_hidden_states_before_they_wait_for_the_report(
    folder: Path,
) -> None:
    counts = json.loads((folder / "2" / f"{compressions.COUNTED}-1-states.json").read_text())
    assert max(counts) > 0, "they exist during the run"
    assert counts[-1] == 0


def test_the_cancellation_of_the_first_rank_ends_all_of_them(folder: Path) -> None:
    for rank in range(2):
        assert (folder / "2" / f"error-{rank}").read_text() == CompressionCancelledError.code
    assert not (folder / "2" / "cancelled").exists()


def test_ranks_resume_an_interrupted_measurement_to_the_same_bytes(folder: Path) -> None:
    measured = (folder / "2" / "measured").read_text().splitlines()
    assert [name[-17:-12] for name in measured] == ["00000", "00001"]
    resumed, whole = (folder / "2" / name for name in ("resumed", "intraslice_plus"))
    weights = "model.safetensors"
    assert (resumed / weights).read_bytes() == (whole / weights).read_bytes()
    assert not [*(folder / "2" / "state").glob("measured-*")]


def test_reports_have_the_measurements_of_one_process(folder: Path) -> None:
    alone, together = (report_in(folder / number / "intraslice_plus") for number in "12")
    for expected, layer in zip(alone.layers, together.layers, strict=True):
        assert layer.mlp.damping.keys() == expected.mlp.damping.keys()
        error = pytest.approx(expected.mlp.relative_error, rel=1e-3, abs=1e-6)
        assert layer.mlp.relative_error == error
        assert len(layer.attention.spectra) == len(expected.attention.spectra)
    assert together.allocation.rank_correlation == pytest.approx(
        alone.allocation.rank_correlation, abs=0.05
    )
    assert together.calibration_hash == alone.calibration_hash
