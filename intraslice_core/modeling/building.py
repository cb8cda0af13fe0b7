"""Builder of a sliced model's configuration from canonical settings and layer shapes."""

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
    "AutoModelForSequenceClassification": "heads_intraslice.IntraSliceForSequenceClassification",
    "AutoModelForTokenClassification": "heads_intraslice.IntraSliceForTokenClassification",
    "AutoModelForQuestionAnswering": "heads_intraslice.IntraSliceForQuestionAnswering",
}
"""Classes for transformers' Auto classes, by module in the checkpoint."""

_BESIDE_ROPE = "original_max_position_embeddings"
"""Setting that is not a field: transformers moves it into `rope_parameters` (Phi-3)."""


class Residual(Protocol):
    """Protocol of the attributes used of a `ResidualWidths`, repeated here for the same reason."""

    @property
    def attention(self) -> int:
        """Return the width that the attention reads."""

    @property
    def mlp(self) -> int:
        """Return the width that the MLP reads."""

    @property
    def output(self) -> int:
        """Return the width of the layer's output."""


class LayerShape(Protocol):
    """Protocol of the attributes used of a `LayerPlan`.

    It is repeated here because this package imports no other package of IntraSlice.
    """

    @property
    def num_attention_heads(self) -> int:
        """Return the number of query heads, 0 without attention."""

    @property
    def num_key_value_heads(self) -> int:
        """Return the number of key/value heads."""

    @property
    def qk_head_dim(self) -> int:
        """Return the width of a query or key head."""

    @property
    def v_head_dim(self) -> int:
        """Return the width of a value head."""

    @property
    def intermediate_size(self) -> int:
        """Return the number of neurons, 0 without MLP."""

    @property
    def residual(self) -> Residual | None:
        """Return the widths of a sliced residual stream, None where it is dense."""


def _layer_entry(
    shape: LayerShape,
    pairs: Sequence[Sequence[int]],
    parts: Mapping[str, Sequence[int]],
    dense: IntraSliceConfig,
    *,
    rotates: bool,
) -> dict[str, int | str]:
    """Return one layer's entry of `per_layer_config`."""
    assert dense.head_dim is not None  # set on construction
    total_pairs, hidden = dense.head_dim // 2, dense.hidden_size
    removed, residual = shape.num_attention_heads == 0, shape.residual
    widths: dict[str, int | str] = {}
    if residual is not None:
        widths = {
            "attention_input_size": residual.attention,
            "mlp_input_size": residual.mlp,
            "output_size": residual.output,
        }
    whole = not rotates or all(len(head_pairs) == total_pairs for head_pairs in pairs)
    return {
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": 0 if removed else shape.num_key_value_heads,
        "qk_head_dim": 0 if removed else shape.qk_head_dim,
        "v_head_dim": 0 if removed else shape.v_head_dim,
        "intermediate_size": shape.intermediate_size,
        "rotary_pairs": "" if removed or whole else encode_rotary_pairs(pairs, total_pairs),
        **widths,
        **{name: encode_rotary_pairs([index], hidden) for name, index in parts.items()},
    }


def _settings(canonical: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that may be changed (transformers completes `rope_parameters` in place).

    Raises:
        ValueError: if a setting is unknown.
    """
    fields = {field.name for field in dataclasses.fields(IntraSliceConfig)} | {_BESIDE_ROPE}
    unknown = sorted(set(canonical) - fields)
    if unknown:
        # transformers would store an unknown setting without any effect.
        raise ValueError(f"IntraSliceConfig has no setting {', '.join(unknown)}")
    values = copy.deepcopy(dict(canonical))
    if values.get(_BESIDE_ROPE) is None:
        values.pop(_BESIDE_ROPE, None)
    for name in ("layer_types", "rope_layers"):
        if values.get(name) is not None:
            values[name] = list(values[name])
    return values


def intraslice_config(
    canonical: Mapping[str, Any],
    layers: Sequence[LayerShape],
    rotary_pairs: Sequence[Sequence[Sequence[int]]],
    residual_parts: Sequence[Mapping[str, Sequence[int]]] | None = None,
) -> IntraSliceConfig:
    """Return the configuration of the sliced model.

    Args:
        canonical: settings of the dense model by the names of `IntraSliceConfig`'s fields.
        layers: one shape per layer, such as a `LayerPlan`.
        rotary_pairs: the kept pairs of every layer and kept KV head, ascending. An empty entry of a
            layer means all pairs and requires the dense `qk_head_dim`. Those of layers without
            rotary embedding are not used.
        residual_parts: dimensions of the residual stream that the modules of every layer read and
            write, ascending, by the name of the field (`attention_reads` and so on); a missing name
            means all. None means all for every layer.

    Raises:
        ValueError: naming the setting or the layer, if a setting is unknown or if shapes and pairs
            contradict each other.
    """
    dense = IntraSliceConfig(**_settings(canonical) | {"residual_shortcuts": False})
    assert dense.head_dim is not None  # set on construction
    assert dense.layer_types is not None
    parts = [{}] * len(layers) if residual_parts is None else residual_parts
    entries = {
        index: _layer_entry(shape, pairs, own, dense, rotates=dense.rotates(index))
        for index, (shape, pairs, own) in enumerate(zip(layers, rotary_pairs, parts, strict=True))
    }
    values = _settings(canonical)
    values["layer_types"] = [
        layer_type if shape.num_attention_heads else WITHOUT_ATTENTION
        for layer_type, shape in zip(dense.layer_types, layers, strict=True)
    ]
    values["architectures"] = ["IntraSliceForCausalLM"]
    values["auto_map"] = dict(AUTO_MAP)
    values["per_layer_config"] = entries
    return IntraSliceConfig(**values)
