"""Several processes write the checkpoint that one process writes, up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from intraslice_core.reports.schema import REPORT_FILE, CompressionReport
from tests.intraslice_core.parallel import compressions
from tests.intraslice_core.parallel.launching import launch
from tests.intraslice_core.tiny_models import tiny_llama

IN_THREE = ("intraslice_plus", "modegpt", "slicegpt")
"""Compressions that also run in three processes."""
CASES = [(2, name) for name in compressions.CONFIGS] + [(3, name) for name in IN_THREE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one, two and three processes, in a directory for each number."""
    folder = tmp_path_factory.mktemp("compressions")
    dense = tiny_llama(folder / "dense", **compressions.MODEL)
    compressions.compress_all(dense, folder / "1", [*compressions.CONFIGS])
    for processes, names in ((2, [*compressions.CONFIGS]), (3, [*IN_THREE])):
        (folder / str(processes)).mkdir()
        done = launch(processes, compressions.__name__, dense, folder / str(processes), *names)
        assert done.returncode == 0, done.stderr
    return folder


def report(place: Path) -> CompressionReport:
    return CompressionReport.model_validate_json((place / REPORT_FILE).read_bytes())


@pytest.mark.parametrize(("processes", "name"), CASES)
def test_processes_choose_the_plan_of_one_and_its_weights_up_to_rounding(
    processes: int, name: str, folder: Path
) -> None:
    alone, together = folder / "1" / name, folder / str(processes) / name
    expected = report(alone)
    assert report(together).plan == expected.plan
    weights = load_file(alone / "model.safetensors")
    other = load_file(together / "model.safetensors")
    assert other.keys() == weights.keys()
    for key, tensor in weights.items():
        if not tensor.is_floating_point():
            assert torch.equal(other[key], tensor), key
            continue
        # A basis of the values has columns of either sign.
        signed = not key.endswith(("v_proj.weight", "o_proj.weight"))
        first, second = (tensor, other[key]) if signed else (tensor.abs(), other[key].abs())
        scale = float(tensor.abs().max())
        torch.testing.assert_close(second, first, rtol=0.0, atol=1e-3 * scale, msg=key)


@pytest.mark.parametrize("name", ["intraslice_plus", "flap"])
def test_all_ranks_get_the_report_of_the_first(name: str, folder: Path) -> None:
    written = report(folder / "2" / name)
    for rank in range(2):
        own = (folder / "2" / f"{name}-{rank}.json").read_text()
        assert CompressionReport.model_validate_json(own).plan == written.plan


def test_reports_have_the_measurements_of_one_process(folder: Path) -> None:
    alone, together = report(folder / "1" / "intraslice_plus"), report(folder / "2/intraslice_plus")
    for expected, layer in zip(alone.layers, together.layers, strict=True):
        assert layer.mlp.damping.keys() == expected.mlp.damping.keys()
        assert layer.mlp.relative_error == pytest.approx(expected.mlp.relative_error, rel=1e-3)
        assert len(layer.attention.spectra) == len(expected.attention.spectra)
    assert together.allocation.rank_correlation == pytest.approx(
        alone.allocation.rank_correlation, abs=0.05
    )
    assert together.calibration_hash == alone.calibration_hash
