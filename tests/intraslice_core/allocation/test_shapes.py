"""Choice of the allocator, cached sensitivity, and the fallback to uniform shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.allocation import shapes
from intraslice_core.allocation.search import TrialCompression
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.statistics_cache import StatisticsCache
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_llama

CALIBRATION = CalibrationConfig(source="pydoc", samples=16, sequence_length=32)


def compress(tmp_path: Path, **changes) -> CompressionReport:
    dense = tiny_llama(tmp_path / "dense") if not (tmp_path / "dense").exists() else None
    settings = {"ratio": 0.3, "round_to": 2, "calibration": CALIBRATION, **changes}
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    return compress_unverified(
        dense or tmp_path / "dense", out, CompressionConfig.model_validate(settings)
    )


@pytest.mark.parametrize(
    ("method", "allocation", "allocator"),
    [
        ("intraslice", "auto", "fisher_pca"),
        ("intraslice", "fisher", "fisher"),
        ("intraslice", "uniform", "uniform"),
        ("magnitude", "auto", "uniform"),
        ("intraslice_plus", "fisher", "fisher"),
    ],
)
def test_the_requested_allocator_chooses_the_shapes(method, allocation, allocator, tmp_path):
    report = compress(tmp_path, method=method, allocation=allocation)
    assert report.allocation is not None
    assert report.allocation.allocator == allocator
    assert report.allocation.requested == allocation
    assert report.removed_fraction == pytest.approx(0.3, abs=0.0035)


def test_the_lagrangian_reports_its_measurements(tmp_path):
    report = compress(tmp_path, allocation="lagrangian")
    section = report.allocation
    assert section is not None
    assert section.calibration_loss is not None
    losses = [candidate.calibration_loss for candidate in section.candidates]
    assert losses == sorted(losses)
    assert losses[0] == section.calibration_loss
    assert section.uniform_calibration_loss is not None
    assert section.fell_back == (section.calibration_loss > section.uniform_calibration_loss)
    assert section.allocator == ("uniform" if section.fell_back else "lagrangian")
    assert section.predicted_loss > 0
    assert len(section.layers) == 3
    assert {trial.layer for trial in section.trials} == {0, 2}


@pytest.mark.parametrize(("best", "uniform", "fell_back"), [(2.0, 1.0, True), (1.0, 2.0, False)])
def test_shapes_with_more_loss_than_uniform_ones_are_not_used(
    best, uniform, fell_back, tmp_path, monkeypatch
):
    monkeypatch.setattr(TrialCompression, "loss", lambda *_: best)
    monkeypatch.setattr(shapes._TrialCompressions, "uniform_loss", lambda _: uniform)
    report = compress(tmp_path, allocation="lagrangian")
    assert report.allocation is not None
    assert report.allocation.fell_back is fell_back
    pairs = {layer.qk_pairs for layer in report.plan.layers}
    if fell_back:
        assert "uniform shapes had less loss" in str(report.allocation.fallback_reason)
        assert len(pairs) == 1


def test_a_second_ratio_uses_the_cached_sensitivity(tmp_path, monkeypatch):
    dense = tiny_llama(tmp_path / "dense")
    place = StatisticsCache(directory=tmp_path / "shared", max_bytes=2**30)

    def run(ratio: float, name: str, statistics_cache: StatisticsCache | None) -> dict[str, bytes]:
        config = CompressionConfig(ratio=ratio, round_to=2, calibration=CALIBRATION)
        compress_model(str(dense), tmp_path / name, config, statistics_cache=statistics_cache)
        return {file.name: file.read_bytes() for file in (tmp_path / name).glob("*.safetensors")}

    alone = run(0.4, "alone", None)
    run(0.2, "first", place)
    monkeypatch.setattr("intraslice_core.allocation.shapes.measure_sensitivity", None)
    assert run(0.4, "second", place) == alone
