"""Proof 1: ratio 0 gives the same logits through the sliced code path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from intraslice_core.config import CalibrationConfig, CompressionConfig, Method
from intraslice_core.modeling import IntraSliceLlamaForCausalLM
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.tiny_models import VARIANTS, tiny_llama

# Every variant by our method, every method on the plain variant: each run ends with a verification
# in a process of its own, which takes seconds.
RUNS = [("plain", "paper"), ("plain", "magnitude"), *((name, "intraslice") for name in VARIANTS)]
CALIBRATION = CalibrationConfig(source="pydoc", samples=8, sequence_length=32)


@pytest.mark.parametrize(("variant", "method"), RUNS)
def test_logits_are_unchanged(tmp_path: Path, variant: str, method: Method) -> None:
    dense = tiny_llama(tmp_path / "dense", **VARIANTS[variant])
    config = CompressionConfig(ratio=0.0, method=method, calibration=CALIBRATION)
    compress_model(str(dense), tmp_path / "out", config)
    sliced = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert isinstance(sliced, IntraSliceLlamaForCausalLM)
    tokens = torch.randint(3, 259, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(dense, dtype=torch.float32)(tokens).logits
        got = sliced(tokens).logits
    assert (got - expected).abs().max() <= 1e-4
