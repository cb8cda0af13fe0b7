"""Configuration of a sliced model from the dense one and the shape of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from transformers import LlamaConfig

from intraslice_core.modeling.configuration_intraslice_llama import (
    IntraSliceLlamaConfig,
    encode_rotary_pairs,
)

AUTO_MAP = {
    "AutoConfig": "configuration_intraslice_llama.IntraSliceLlamaConfig",
    "AutoModel": "modeling_intraslice_llama.IntraSliceLlamaModel",
    "AutoModelForCausalLM": "modeling_intraslice_llama.IntraSliceLlamaForCausalLM",
}
"""Where transformers finds the classes, relative to the checkpoint."""


class LayerShape(Protocol):
    """What is read of a `LayerPlan`; spelled out because this package imports nothing of ours."""

    @property
    def num_attention_heads(self) -> int:
        """Query heads; 0 without attention."""

    @property
    def num_key_value_heads(self) -> int:
        """Key/value heads."""

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head."""

    @property
    def v_head_dim(self) -> int:
        """Width of a value head."""

    @property
    def intermediate_size(self) -> int:
        """Neurons; 0 without MLP."""


def _layer_entry(
    shape: LayerShape, pairs: Sequence[Sequence[int]], total_pairs: int
) -> dict[str, int | str]:
    """One layer's `per_layer_config`."""
    removed = shape.num_attention_heads == 0
    whole = all(len(kept) == total_pairs for kept in pairs)
    return {
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": 0 if removed else shape.num_key_value_heads,
        "qk_head_dim": 0 if removed else shape.qk_head_dim,
        "v_head_dim": 0 if removed else shape.v_head_dim,
        "intermediate_size": shape.intermediate_size,
        "rotary_pairs": "" if removed or whole else encode_rotary_pairs(pairs, total_pairs),
    }


def intraslice_config(
    dense: LlamaConfig,
    layers: Sequence[LayerShape],
    rotary_pairs: Sequence[Sequence[Sequence[int]]],
) -> IntraSliceLlamaConfig:
    """The configuration of the sliced model.

    Args:
        dense: the dense model's.
        layers: one shape per layer (a `LayerPlan` will do).
        rotary_pairs: per layer and kept KV head the kept pairs, ascending. An empty layer stands
            for "all pairs", which only fits an uncut `qk_head_dim`.

    Raises:
        ValueError: if shapes and pairs contradict each other, naming the layer.
    """
    values: dict[str, Any] = dense.to_dict()
    for key in ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path"):
        values.pop(key, None)
    head_dim = dense.head_dim or dense.hidden_size // dense.num_attention_heads
    entries = {
        index: _layer_entry(shape, pairs, head_dim // 2)
        for index, (shape, pairs) in enumerate(zip(layers, rotary_pairs, strict=True))
    }
    if any(shape.num_attention_heads == 0 for shape in layers):
        # Caches keep nothing for a "moe" layer; without this a static cache of a model that lost
        # its first attention counts positions wrongly.
        values["layer_types"] = [
            "full_attention" if shape.num_attention_heads else "moe" for shape in layers
        ]
    values["architectures"] = ["IntraSliceLlamaForCausalLM"]
    values["auto_map"] = dict(AUTO_MAP)
    values["per_layer_config"] = entries
    return IntraSliceLlamaConfig(**values)
