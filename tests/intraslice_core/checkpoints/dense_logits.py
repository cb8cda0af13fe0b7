"""Logits of a checkpoint as the engine reads it, and as transformers loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from intraslice_core import decoder_layer, modeling
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader

WEIGHTS = "model.safetensors"
_CPU = torch.device("cpu")


def tokens(length: int = 23) -> Tensor:
    """Return two sequences longer than every window of the tiny models."""
    return torch.randint(3, 259, (2, length), generator=torch.Generator().manual_seed(1))


def engine_logits(directory: Path, ids: Tensor) -> Tensor:
    """Return the logits that the engine computes in float32, (sequences, length, vocabulary)."""
    with CheckpointReader(directory) as reader, torch.no_grad():
        layers = DenseLayerReader(reader, _CPU, torch.float32)
        hidden = layers.embed(ids)
        for layer in range(layers.num_layers):
            rotary = layers.rotary(layer, ids.shape[1])
            hidden = decoder_layer.forward(
                hidden, layers.weights(layer), layers.settings(layer), rotary
            )
        return layers.logits(hidden.flatten(0, 1)).view(*ids.shape, -1)


def transformers_logits(directory: Path, ids: Tensor) -> Tensor:
    """Return the logits of the model that transformers loads from the directory in float32."""
    modeling.register()
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    model.train(False)
    with torch.no_grad():
        return model(ids).logits


def require_equal_logits(directory: Path, *, atol: float = 1e-4) -> None:
    """Raise if the engine and transformers read different models from a directory."""
    ids = tokens()
    torch.testing.assert_close(
        engine_logits(directory, ids), transformers_logits(directory, ids), rtol=0, atol=atol
    )


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Apply a change to the tensors of model.safetensors."""
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def change_settings(directory: Path, **settings: Any) -> None:
    """Set values of config.json; None removes a key."""
    file = directory / "config.json"
    values = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
