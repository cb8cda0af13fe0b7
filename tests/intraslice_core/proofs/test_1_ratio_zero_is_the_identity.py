"""Proof 1: ratio 0 gives the same logits through the sliced code path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from intraslice_core.config import CalibrationConfig, CompressionConfig, Method
from intraslice_core.modeling import IntraSliceForCausalLM
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    VARIANTS,
    save_checkpoint,
    tiny_family_model,
    tiny_llama,
)

# Every variant of every family by IntraSlice+, the other methods where their code differs.
RUNS = [
    *((name, "intraslice_plus") for name in FAMILY_VARIANTS),
    *(
        (name, method)
        for name in ("llama", "phi", "gemma3")
        for method in ("intraslice", "magnitude")
    ),
]
CALIBRATION = CalibrationConfig(source="pydoc", samples=8, sequence_length=32)


def largest_difference(dense: Path, out: Path) -> float:
    """Return the largest difference of any logit, both models loaded in float32."""
    tokens = torch.randint(3, 259, (2, 40), generator=torch.Generator().manual_seed(1))
    expected, sliced = (
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        for directory in (dense, out)
    )
    assert isinstance(sliced, IntraSliceForCausalLM)
    with torch.no_grad():
        return float((sliced(tokens).logits - expected(tokens).logits).abs().max())


@pytest.mark.parametrize(("variant", "method"), RUNS)
def test_logits_of_every_family_are_unchanged(tmp_path: Path, variant: str, method: Method) -> None:
    dense = save_checkpoint(tiny_family_model(variant), tmp_path / "dense")
    config = CompressionConfig(ratio=0.0, method=method, calibration=CALIBRATION)
    compress_unverified(dense, tmp_path / "out", config)
    assert largest_difference(dense, tmp_path / "out") <= 1e-4


@pytest.mark.parametrize("variant", ["qwen3", "phi", "phi3_longrope", "gemma2"])
def test_logits_of_bfloat16_checkpoints_are_unchanged(tmp_path: Path, variant: str) -> None:
    model = tiny_family_model(variant).to(torch.bfloat16)
    dense = save_checkpoint(model, tmp_path / "dense")
    config = CompressionConfig(ratio=0.0, dtype="float32", calibration=CALIBRATION)
    compress_unverified(dense, tmp_path / "out", config)
    assert largest_difference(dense, tmp_path / "out") <= 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_every_llama_are_unchanged(tmp_path: Path, variant: str) -> None:
    dense = tiny_llama(tmp_path / "dense", **VARIANTS[variant])
    config = CompressionConfig(ratio=0.0, calibration=CALIBRATION)
    compress_unverified(dense, tmp_path / "out", config)
    assert largest_difference(dense, tmp_path / "out") <= 1e-4


def test_logits_of_a_verified_model_are_unchanged(tmp_path: Path) -> None:
    dense = save_checkpoint(tiny_family_model("gemma3"), tmp_path / "dense")
    config = CompressionConfig(ratio=0.0, calibration=CALIBRATION)
    compress_model(str(dense), tmp_path / "out", config)
    assert largest_difference(dense, tmp_path / "out") <= 1e-4
