"""The dense model's embedding is computed as by transformers in the compute dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_family_model


@pytest.mark.parametrize("variant", ["gemma3", "opt"])
def test_embedding_of_a_bfloat16_checkpoint_is_computed_in_float32(
    tmp_path: Path, variant: str
) -> None:
    dense = save_checkpoint(tiny_family_model(variant).to(torch.bfloat16), tmp_path)
    tokens = torch.arange(3, 27).view(2, 12)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True).hidden_states[0]
    with CheckpointReader(dense) as reader:
        embedded = DenseLayerReader(reader, torch.device("cpu"), torch.float32).embed(tokens)
    assert torch.equal(embedded, expected)
