"""Canonical architecture of the engine: tensor names, shapes, layer weights and rotary tables.

`CanonicalSettings` holds the fields of `modeling.IntraSliceConfig` for a dense model. Family
adapters produce them, and code that uses them does not depend on the family.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from intraslice_core.decoder_layer import (
    LayerSettings,
    LayerWeights,
    Linear,
    Norm,
    QueryScaling,
    Rotary,
)

CanonicalSettings = dict[str, Any]

PROJECTIONS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "mlp_output": "mlp.down_proj",
}
NORMS = {
    "input_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention_output_norm": "attention_output_norm",
    "mlp_output_norm": "mlp_output_norm",
}
SHORTCUTS = {"attention_shortcut": "attention_shortcut", "mlp_shortcut": "mlp_shortcut"}
HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
EMBEDDING = "model.embed_tokens.weight"
EMBEDDING_SHORTCUT = "model.embedding_shortcut.weight"
POSITIONS = "model.embed_positions.weight"
BIASED_NORM_TYPES = ("layer", "layer_plus_one")


def layer_prefix(layer: int) -> str:
    """Return the prefix of the names of a layer's tensors, including the final dot."""
    return f"model.layers.{layer}."


PER_LAYER_SETTINGS = ("layer_types", "rope_layers")
"""Settings with one entry per layer."""


def with_layers(settings: CanonicalSettings, layers: Sequence[int]) -> CanonicalSettings:
    """Return the settings of a model that has only some of the layers.

    Args:
        settings: of the dense model.
        layers: numbers of the layers that remain, ascending.
    """
    per_layer = {
        name: tuple(settings[name][layer] for layer in layers)
        for name in PER_LAYER_SETTINGS
        if settings[name] is not None
    }
    return settings | per_layer | {"num_hidden_layers": len(layers)}


# -- shapes ------------------------------------------------------------------------------------


def layer_shapes(settings: CanonicalSettings) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a dense layer, by name without the layer's prefix."""
    hidden, width = settings["hidden_size"], settings["intermediate_size"]
    queries = settings["num_attention_heads"] * settings["head_dim"]
    groups = settings["num_key_value_heads"] * settings["head_dim"]
    shapes = _norm_shapes(settings)
    linears = {
        "self_attn.q_proj": (queries, hidden, settings["attention_bias"]),
        "self_attn.k_proj": (groups, hidden, settings["attention_bias"]),
        "self_attn.v_proj": (groups, hidden, settings["attention_bias"]),
        "self_attn.o_proj": (hidden, queries, settings["attention_output_bias"]),
        "mlp.gate_proj": (width, hidden, settings["mlp_bias"]),
        "mlp.up_proj": (width, hidden, settings["mlp_bias"]),
        "mlp.down_proj": (hidden, width, settings["mlp_bias"] or settings.get("mlp_output_bias")),
    }
    if not settings["gated_mlp"]:
        del linears["mlp.gate_proj"]
    for module, (rows, columns, bias) in linears.items():
        shapes[f"{module}.weight"] = (rows, columns)
        if bias:
            shapes[f"{module}.bias"] = (rows,)
    if settings["qk_norm"]:
        shapes |= {f"{module}.weight": (groups,) for module in HEAD_NORMS.values()}
    if settings["qk_norm_across_heads"]:
        shapes[f"{HEAD_NORMS['query_norm']}.weight"] = (queries,)
    return shapes


def _norm_shapes(settings: CanonicalSettings) -> dict[str, tuple[int, ...]]:
    modules = ["input_layernorm"] if settings["input_norms"] else []
    shares_norm = settings["parallel_block"] and not settings["separate_mlp_norm"]
    if settings["input_norms"] and not shares_norm:
        modules.append("post_attention_layernorm")
    if settings["output_norms"]:
        modules += ["attention_output_norm", "mlp_output_norm"]
    kinds = ("weight", "bias") if settings["norm_type"] in BIASED_NORM_TYPES else ("weight",)
    return {f"{module}.{kind}": (settings["hidden_size"],) for module in modules for kind in kinds}


def outer_shapes(settings: CanonicalSettings) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor outside the layers; a tied output head has none."""
    table = (settings["vocab_size"], settings["hidden_size"])
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table, "model.norm.weight": table[1:]}
    if settings["position_rows"]:
        shapes[POSITIONS] = (settings["position_rows"], table[1])
    if settings["norm_type"] in BIASED_NORM_TYPES:
        shapes["model.norm.bias"] = table[1:]
    if not settings["tie_word_embeddings"]:
        shapes["lm_head.weight"] = table
    if settings["lm_head_bias"]:
        shapes["lm_head.bias"] = table[:1]
    return shapes


# -- decoder layers -----------------------------------------------------------------------------


def layer_settings(settings: CanonicalSettings, layer: int) -> LayerSettings:
    """Return a decoder layer's settings: everything its forward pass needs besides weights."""
    slides = settings["layer_types"][layer] == "sliding_attention"
    scaling = settings["query_scaling"]
    return LayerSettings(
        num_attention_heads=settings["num_attention_heads"],
        num_key_value_heads=settings["num_key_value_heads"],
        head_dim=settings["head_dim"],
        activation=ACT2FN[settings["hidden_act"]],
        norm_type=settings["norm_type"],
        norm_eps=settings["norm_eps"],
        attention_scale=settings["attention_scale"],
        attn_logit_softcapping=settings["attn_logit_softcapping"],
        sliding_window=settings["sliding_window"] if slides else None,
        parallel_block=settings["parallel_block"],
        rotates=rotates(settings, layer),
        qk_norm_across_heads=settings["qk_norm_across_heads"],
        query_scaling=None if scaling is None else QueryScaling(**scaling),
        residual_scale=settings["residual_scale"],
    )


def layer_weights(
    tensors: Mapping[str, Tensor],
    num_key_value_heads: int,
    device: torch.device,
    dtype: torch.dtype,
) -> LayerWeights:
    """Return a decoder layer's weights, dense or sliced, from its canonical tensors.

    The norms of a sliced residual stream have no weights; they get ones.

    Args:
        tensors: tensors by names without the layer's prefix; of a removed module only the norms.
        num_key_value_heads: KV heads of this layer, 0 without attention.
        device: compute device.
        dtype: compute dtype.
    """

    def at(name: str) -> Tensor | None:
        return tensors[name].to(device, dtype) if name in tensors else None

    def norm(module: str) -> Norm | None:
        weight = at(f"{module}.weight")
        return None if weight is None else Norm(weight=weight, bias=at(f"{module}.bias"))

    def linear(module: str) -> Linear | None:
        weight = at(f"{module}.weight")
        return None if weight is None else Linear(weight=weight, bias=at(f"{module}.bias"))

    groups = num_key_value_heads
    parts: dict[str, Any] = {part: norm(module) for part, module in NORMS.items()}
    parts |= {part: linear(module) for part, module in PROJECTIONS.items()}
    for part, module in HEAD_NORMS.items():
        weight = at(f"{module}.weight")
        parts[part] = None if weight is None else weight.view(-1, _head_width(parts["key"], groups))
    parts |= {part: at(f"{module}.weight") for part, module in SHORTCUTS.items()}
    past_attention: Tensor | None = parts["attention_shortcut"]
    if past_attention is not None:
        after, before = past_attention.shape
        parts["input_norm"] = Norm(weight=past_attention.new_ones(before))
        parts["mlp_norm"] = Norm(weight=past_attention.new_ones(after))
    empty = _any_norm(parts).new_empty(0)
    for part in ("query", "key", "value", "up"):
        parts[part] = parts[part] or Linear(weight=empty.view(0, 1).expand(0, _hidden(parts)))
    for part in ("attention_output", "mlp_output"):
        parts[part] = parts[part] or Linear(weight=empty.expand(_hidden(parts), 0))
    return LayerWeights(num_key_value_heads=groups, **parts)


def _any_norm(parts: Mapping[str, Any]) -> Tensor:
    """Return the weight of one of the layer's norms, which remain without their modules."""
    weight: Tensor = next(parts[part].weight for part in NORMS if parts[part] is not None)
    return weight


def _hidden(parts: Mapping[str, Any]) -> int:
    return _any_norm(parts).shape[0]


def _head_width(key: Linear, num_key_value_heads: int) -> int:
    return key.weight.shape[0] // num_key_value_heads


def named_tensors(layer: int, weights: LayerWeights) -> dict[str, Tensor]:
    """Return a decoder layer's tensors by full canonical names.

    Removed modules have none, and neither have the norms of a sliced residual stream.
    """
    named: dict[str, Tensor] = {}
    is_sliced = weights.attention_shortcut is not None
    for part, module in (PROJECTIONS if is_sliced else NORMS | PROJECTIONS).items():
        value: Norm | Linear | None = getattr(weights, part)
        if value is not None and value.weight.numel():
            named[f"{module}.weight"] = value.weight
            if value.bias is not None:
                named[f"{module}.bias"] = value.bias
    for part, module in HEAD_NORMS.items():
        weight: Tensor | None = getattr(weights, part)
        if weight is not None and weight.numel():
            named[f"{module}.weight"] = weight.flatten()
    for part, module in SHORTCUTS.items():
        matrix: Tensor | None = getattr(weights, part)
        if matrix is not None:
            named[f"{module}.weight"] = matrix
    prefix = layer_prefix(layer)
    return {prefix + name: tensor for name, tensor in named.items()}


def renumbered(tensors: Mapping[str, Tensor], layer: int, number: int) -> dict[str, Tensor]:
    """Return a layer's tensors under the full canonical names of another layer number."""
    prefix = layer_prefix(layer)
    return {
        layer_prefix(number) + name.removeprefix(prefix): tensor for name, tensor in tensors.items()
    }


# -- embedding and rotary tables ---------------------------------------------------------------


def embedded(settings: CanonicalSettings, rows: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return the input of the first layer, (…, sequence, hidden_size).

    The embedding scale is rounded to the rows' dtype first, as the model classes do.

    Args:
        settings: of the model.
        rows: rows of the embedding matrix, (…, sequence, hidden_size), in the compute dtype.
        positions: table of learned positions, (position_rows, hidden_size), or None.
    """
    scale = torch.tensor(settings["embedding_scale"], dtype=rows.dtype, device=rows.device)
    if positions is None:
        return rows * scale
    first = settings["position_offset"]
    return rows * scale + positions[first : first + rows.shape[-2]].to(rows)


def rope_of(settings: CanonicalSettings, layer_type: str) -> dict[str, Any]:
    """Return the rotary parameters of layers of a type."""
    rope: dict[str, Any] = settings["rope_parameters"] or {}
    nested = rope.get(layer_type)
    return nested if isinstance(nested, dict) else rope


def rotates(settings: CanonicalSettings, layer: int) -> bool:
    """Return whether a layer has rotary embedding."""
    flags = settings["rope_layers"]
    return flags is None or bool(flags[layer])


def rotating_dims(settings: CanonicalSettings, layer_type: str) -> int:
    """Return the number of a head's dimensions with rotary embedding."""
    factor = rope_of(settings, layer_type).get("partial_rotary_factor") or 1.0
    return int(settings["head_dim"] * factor)


def rotary_tables(
    settings: CanonicalSettings, layer: int, length: int, device: torch.device
) -> Rotary:
    """Return the rotary tables for positions 0 … length-1, computed by transformers.

    Pairs without rotary embedding have cosine 1 and sine 0, as all pairs of a layer without it.
    """
    if not rotates(settings, layer):
        shape = (length, settings["head_dim"])
        return Rotary(cos=torch.ones(shape, device=device), sin=torch.zeros(shape, device=device))
    embedding = rotary_embedding(settings, layer, device)
    positions = torch.arange(length, device=device).unsqueeze(0)
    cos, sin = embedding(torch.zeros(1, 1, 1, device=device), positions)
    return Rotary(
        cos=_with_still_pairs(cos[0], settings["head_dim"], 1.0),
        sin=_with_still_pairs(sin[0], settings["head_dim"], 0.0),
    )


def rotary_embedding(
    settings: CanonicalSettings, layer: int, device: torch.device
) -> Phi3RotaryEmbedding:
    """Return a layer's rotary embedding: `inv_freq`, (rotating pairs,), and `attention_scaling`."""
    layer_type = settings["layer_types"][layer]
    config = PreTrainedConfig()
    config.rope_parameters = copy.deepcopy(rope_of(settings, layer_type))
    config.head_dim, config.hidden_size = settings["head_dim"], settings["hidden_size"]
    config.num_attention_heads = settings["num_attention_heads"]
    config.max_position_embeddings = settings["max_position_embeddings"]
    if settings["original_max_position_embeddings"] is not None:
        config.original_max_position_embeddings = settings["original_max_position_embeddings"]
    return Phi3RotaryEmbedding(config).to(device)  # type: ignore[arg-type]


def _with_still_pairs(table: Tensor, head_dim: int, value: float) -> Tensor:
    """Extend both halves of a table (length, rotating) to head_dim / 2 columns each."""
    still = (head_dim - table.shape[-1]) // 2
    halves = [torch.nn.functional.pad(half, (0, still), value=value) for half in table.chunk(2, -1)]
    return torch.cat(halves, dim=-1)
