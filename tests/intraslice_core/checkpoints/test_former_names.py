"""Checkpoints with names of older releases are read as transformers reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from tests.intraslice_core.tiny_models import tiny_checkpoint

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("variant", "saved", "other"),
    # transformers still saves GPT-NeoX's head under its former name.
    [("gpt_neox", "embed_out.", "lm_head."), ("opt", "model.decoder.", "decoder.")],
)
def test_names_of_all_releases_are_read_as_by_transformers(
    tmp_path: Path, variant: str, saved: str, other: str
) -> None:
    dense = tiny_checkpoint(tmp_path, variant)
    tensors = load_file(dense / WEIGHTS)
    assert any(name.startswith(saved) for name in tensors)
    renamed = {name.replace(saved, other): tensor for name, tensor in tensors.items()}
    save_file(renamed, dense / WEIGHTS, metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(dense)
    with CheckpointReader(dense) as reader:
        for name, tensor in loaded.named_parameters():
            assert torch.equal(reader.tensor(name), tensor), name


def test_masks_in_older_checkpoints_are_not_read(tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path, "gpt_neox")
    tensors = load_file(dense / WEIGHTS)
    tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-torch.inf)
    save_file(tensors, dense / WEIGHTS, metadata={"format": "pt"})
    with CheckpointReader(dense) as reader:
        weights = DenseLayerReader(reader, torch.device("cpu"), torch.float32).weights(0)
    assert weights.query.bias is not None
    assert weights.query.bias.shape == (48,)
