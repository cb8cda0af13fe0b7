"""Reports have the spectra of every method that uses data, with the cuts of the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.config import CalibrationConfig, CompressionConfig, Method
from intraslice_core.reports.schema import CompressionReport
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_llama

CALIBRATION = CalibrationConfig(source="pydoc", samples=16, sequence_length=32)
SIZES = {"rotary pairs": "qk_pairs", "value dims": "v_head_dim", "MLP neurons": "intermediate_size"}


def compressed(place: Path, method: Method, **more: object) -> CompressionReport:
    config = CompressionConfig.model_validate(
        {"ratio": 0.3, "method": method, "round_to": 2, "calibration": CALIBRATION, **more}
    )
    return compress_unverified(tiny_llama(place / "dense"), place / "out", config)


@pytest.mark.parametrize(
    ("method", "allocation"),
    [("intraslice_plus", "lagrangian"), ("intraslice_plus", "uniform"), ("intraslice", "uniform")],
)
def test_every_cut_dimension_has_a_spectrum(
    tmp_path: Path, method: Method, allocation: str
) -> None:
    report = compressed(tmp_path, method, allocation=allocation)
    dense = report.geometry.dense_layer()
    for layer in report.layers:
        for spectrum in (*layer.attention.spectra, *layer.mlp.spectra):
            name = SIZES[spectrum.dimension]
            assert spectrum.size == getattr(dense, name)
            assert spectrum.kept == getattr(layer.plan, name)
            assert len(spectrum.values) == len(spectrum.ranks)
        recorded = {
            spectrum.dimension for spectrum in (*layer.attention.spectra, *layer.mlp.spectra)
        }
        cut = {
            name for name, size in SIZES.items() if getattr(layer.plan, size) < getattr(dense, size)
        }
        removed = {"rotary pairs", "value dims"} if layer.plan.num_attention_heads == 0 else set()
        removed |= {"MLP neurons"} if layer.plan.intermediate_size == 0 else set()
        assert cut - removed <= recorded


def test_a_method_without_data_has_no_spectra(tmp_path: Path) -> None:
    report = compressed(tmp_path, "magnitude")
    assert all(not layer.attention.spectra and not layer.mlp.spectra for layer in report.layers)
