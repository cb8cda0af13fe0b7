"""A compression whose factorisations are in float32 gives the model of float64, within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from intraslice_core import linalg
from intraslice_core.config import CalibrationConfig, CompressionConfig, Method
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_llama

CALIBRATION = CalibrationConfig(source="pydoc", samples=32, sequence_length=64)
WEIGHT_TOLERANCE = 1e-3
"""Largest difference of a weight matrix, relative to its norm."""


@pytest.mark.parametrize("method", ["intraslice_plus", "intraslice", "modegpt", "slicegpt", "spp"])
def test_plan_and_weights_are_those_of_float64(tmp_path: Path, method: Method) -> None:
    dense = tiny_llama(tmp_path / "dense")
    config = CompressionConfig(
        ratio=0.3, method=method, round_to=2, calibration=CALIBRATION, dtype="float32", device="cpu"
    )
    exact = compress_unverified(dense, tmp_path / "float64", config)
    with linalg.mixed_precision():
        mixed = compress_unverified(dense, tmp_path / "float32", config)
    assert mixed.plan == exact.plan
    weights, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("float32", "float64")
    )
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        difference = torch.linalg.vector_norm(weight - expected[name])
        assert difference <= WEIGHT_TOLERANCE * torch.linalg.vector_norm(expected[name]), name
    assert any(not torch.equal(weights[name], expected[name]) for name in weights)
