"""Configuration of a sliced model from canonical settings and the shape of every layer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from intraslice_core.modeling.configuration_intraslice import (
    WITHOUT_ATTENTION,
    IntraSliceConfig,
    encode_rotary_pairs,
)

AUTO_MAP = {
    "AutoConfig": "configuration_intraslice.IntraSliceConfig",
    "AutoModel": "modeling_intraslice.IntraSliceModel",
    "AutoModelForCausalLM": "modeling_intraslice.IntraSliceForCausalLM",
}
"""Where transformers finds the classes, relative to the checkpoint."""

_BESIDE_ROPE = "original_max_position_embeddings"
"""No field of ours: transformers moves it into `rope_parameters` where it is given (Phi-3)."""


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


def _settings(canonical: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that may be changed (transformers completes `rope_parameters` in place).

    Raises:
        ValueError: if a setting is unknown.
    """
    known = {field.name for field in dataclasses.fields(IntraSliceConfig)} | {_BESIDE_ROPE}
    unknown = sorted(set(canonical) - known)
    if unknown:
        # transformers would store it and nobody would read it.
        raise ValueError(f"IntraSliceConfig has no setting {', '.join(unknown)}")
    values = copy.deepcopy(dict(canonical))
    if values.get(_BESIDE_ROPE) is None:
        values.pop(_BESIDE_ROPE, None)
    if values.get("layer_types") is not None:
        values["layer_types"] = list(values["layer_types"])
    return values


def intraslice_config(
    canonical: Mapping[str, Any],
    layers: Sequence[LayerShape],
    rotary_pairs: Sequence[Sequence[Sequence[int]]],
) -> IntraSliceConfig:
    """The configuration of the sliced model.

    Args:
        canonical: settings of the dense model by the names of `IntraSliceConfig`'s fields.
        layers: one shape per layer (a `LayerPlan` will do).
        rotary_pairs: per layer and kept KV head the kept pairs, ascending. An empty layer stands
            for "all pairs", which only fits an uncut `qk_head_dim`.

    Raises:
        ValueError: if a setting is unknown, or if shapes and pairs contradict each other, naming
            the setting or the layer.
    """
    dense = IntraSliceConfig(**_settings(canonical))
    assert dense.head_dim is not None  # set on construction
    assert dense.layer_types is not None
    entries = {
        index: _layer_entry(shape, pairs, dense.head_dim // 2)
        for index, (shape, pairs) in enumerate(zip(layers, rotary_pairs, strict=True))
    }
    values = _settings(canonical)
    values["layer_types"] = [
        kind if shape.num_attention_heads else WITHOUT_ATTENTION
        for kind, shape in zip(dense.layer_types, layers, strict=True)
    ]
    values["architectures"] = ["IntraSliceForCausalLM"]
    values["auto_map"] = dict(AUTO_MAP)
    values["per_layer_config"] = entries
    return IntraSliceConfig(**values)
