"""From a checkpoint's tensors to a block the engine can run, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from intraslice_core.block import BlockSettings, BlockWeights, Linear, Rotary
from intraslice_core.families.llama import LlamaFamily

PROJECTIONS = ("query", "key", "value", "attention_output", "gate", "up", "mlp_output")
NORMS = ("input_norm", "mlp_norm")


def block_settings(config: PreTrainedConfig) -> BlockSettings:
    """What every block of the model needs besides its weights."""
    return BlockSettings(
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        activation=ACT2FN[config.hidden_act],
    )


def block_weights(
    family: LlamaFamily, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> BlockWeights:
    """A dense block from a layer's tensors, named without the layer's prefix."""

    def at(name: str) -> Tensor:
        return tensors[name].to(device, dtype)

    def linear(place: str) -> Linear:
        bias = f"{place}.bias"
        return Linear(weight=at(f"{place}.weight"), bias=at(bias) if bias in tensors else None)

    places = family.places
    parts: dict[str, Any] = {name: at(f"{getattr(places, name)}.weight") for name in NORMS}
    parts |= {name: linear(getattr(places, name)) for name in PROJECTIONS}
    return BlockWeights(**parts)


def named_tensors(family: LlamaFamily, layer: int, weights: BlockWeights) -> dict[str, Tensor]:
    """A block's tensors under the names a checkpoint gives them."""
    prefix, places = family.layer_prefix(layer), family.places
    named = {f"{prefix}{getattr(places, name)}.weight": getattr(weights, name) for name in NORMS}
    for name in PROJECTIONS:
        linear: Linear = getattr(weights, name)
        named[f"{prefix}{getattr(places, name)}.weight"] = linear.weight
        if linear.bias is not None:
            named[f"{prefix}{getattr(places, name)}.bias"] = linear.bias
    return named


def rotary_tables(config: Any, length: int, device: torch.device) -> Rotary:
    """The model classes' own tables for positions 0 … length-1, scaled as the model scales them."""
    embedding = LlamaRotaryEmbedding(config).to(device)
    positions = torch.arange(length, device=device).unsqueeze(0)
    cos, sin = embedding(torch.zeros(1, 1, 1, device=device), positions)
    return Rotary(cos=cos[0], sin=sin[0])
