"""Configuration of the IntraSlice decoder: one architecture for all families, with settings.

This file travels inside the checkpoint: it imports nothing but transformers (and the validation
that transformers' own configurations use).

The global values are the dense model's; `per_layer_config` holds the shape of each layer:
`num_attention_heads`, `num_key_value_heads`, `qk_head_dim` (two dimensions a rotary pair),
`v_head_dim`, `intermediate_size` and `rotary_pairs`. A layer with 0 query heads has no attention,
and one with `intermediate_size` 0 has no MLP. `head_dim` remains the dense head dim: it determines
the rotary frequencies, and the mean of a query or key norm is over it.

The residual stream has two optional forms, which exclude each other. With `residual_shortcuts`,
`attention_input_size`, `mlp_input_size` and `output_size` are the widths of the layer's stream.
`attention_reads`, `attention_writes`, `mlp_reads` and `mlp_writes` are bitmasks of the parts of a
whole stream: the dimensions that a module reads after its norm, and adds to; empty ones are of all.

A head has `head_dim // 2` pairs, stored half-split: the first dimension of every pair, then the
second. With partial rotary embedding the rotating pairs come first, then the still ones. In layers
without rotary embedding (`rope_layers`), queries and keys may be in any basis, and `rotary_pairs`
is empty.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

RMS_NORM_TYPES = ("rms", "rms_plus_one", "rms_float32")
NORM_TYPES = (*RMS_NORM_TYPES, "layer", "layer_plus_one", "layer_without_bias")
RESIDUAL_PARTS = ("attention_reads", "attention_writes", "mlp_reads", "mlp_writes")
"""Keys of `per_layer_config` with masks of parts of the residual stream."""
WITHOUT_ATTENTION = "moe"
"""`layer_types` entry of a layer without attention, for which caches store nothing.

With another entry, a static cache of a model whose first layer has no attention counts positions
wrongly.
"""


def encode_rotary_pairs(indices: Sequence[Sequence[int]], total: int) -> str:
    """Return rotary pairs as text: one hexadecimal bitmask per KV head, joined by commas.

    Args:
        indices: the kept pairs of each KV head, ascending.
        total: number of pairs of a dense head; every index is below it.

    Raises:
        ValueError: if an index is out of range or the order is not strictly ascending.
    """
    masks = []
    for head_indices in indices:
        pairs = [int(pair) for pair in head_indices]
        if pairs != sorted(set(pairs)) or any(not 0 <= pair < total for pair in pairs):
            raise ValueError(f"rotary pairs must ascend within [0, {total}), got {pairs}")
        masks.append(format(sum(1 << pair for pair in pairs), "x"))
    return ",".join(masks)


def decode_rotary_pairs(text: str) -> list[list[int]]:
    """Return the kept pairs of each KV head, ascending; the inverse of `encode_rotary_pairs`."""
    masks = [int(part, 16) for part in text.split(",")] if text else []
    return [[bit for bit in range(mask.bit_length()) if mask >> bit & 1] for mask in masks]


@strict
class IntraSliceConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of a decoder with per-layer heads, head dims and MLP widths.

    Settings that describe a family's architecture:
        base_model_type: `model_type` of the dense model, for information only.
        norm_type: "rms" (`weight * normed`, as Llama rounds it), "rms_plus_one"
            (`(1 + weight) * normed` in float32, Gemma), "rms_float32" (`weight * normed` in
            float32, OLMo 2), "layer" (LayerNorm with bias), "layer_plus_one" (the same with
            1 + weight, Nemotron) or "layer_without_bias" (Cohere).
        gated_mlp: `act(gate(x)) * up(x)`; without it `act(up(x))`.
        mlp_bias: True if gate, up and down have biases.
        mlp_output_bias: True if down has a bias; implied by `mlp_bias`.
        attention_bias: True if q, k and v have biases.
        attention_output_bias: True if o has a bias.
        lm_head_bias: True if the output head has a bias.
        parallel_block: attention and MLP read the same hidden states, and both are added at once.
        separate_mlp_norm: in a parallel block the MLP has a norm of its own (GPT-NeoX); otherwise
            it reads the attention's.
        input_norms: a norm on the input of each module; without it modules read the hidden states.
        output_norms: a norm on the output of each module, before it is added.
        qk_norm: a norm on every query and key head before the rotary embedding.
        qk_norm_across_heads: the mean of that norm is over all heads together (OLMo 2).
        attention_scale: factor on the scores before the softmax; None is `head_dim ** -0.5`.
        attn_logit_softcapping: bound of the scores, or None.
        final_logit_softcapping: bound of the logits, or None.
        embedding_scale: factor on the embeddings, first rounded to their dtype.
        position_rows: rows of the table of learned positions that is added to the embeddings, 0
            without one (OPT has one).
        position_offset: row of the first position in that table.
        residual_scale: factor on the output of each module, before it is added.
        residual_shortcuts: the residual stream is narrower than `hidden_size`, and a matrix on each
            residual connection leads from one basis to the next (SliceGPT). Norms of the layers'
            inputs are RMS norms without weight, over `hidden_size`. A tied embedding is multiplied
            by a matrix. The last layer's output and the final norm have `hidden_size`.
        logit_scale: factor on the logits, before their soft cap.
        query_scaling: `beta` and `length` of a factor on the queries at position p,
            `1 + beta · log(1 + ⌊p / length⌋)`, or None (Ministral 3).
        rope_parameters: as in transformers, one dict or one per layer type.
        rope_layers: one flag per layer, False in layers without rotary embedding; None is all True.
        layer_types: "full_attention", "sliding_attention" or, without attention, "moe".
        sliding_window: window length of the "sliding_attention" layers.
    """

    model_type = "intraslice"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # Attention is excluded: splitting its columns over devices would require splitting the rotary
    # index with them.
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar[dict[str, Sequence[list[str]]]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    # There is one set of frequencies per layer type, even if no layer of a type has attention.
    _rope_type_labels: ClassVar[tuple[str, ...]] = ("full_attention", "sliding_attention")

    base_model_type: str = ""
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    norm_type: str = "rms"
    norm_eps: float = 1e-6
    gated_mlp: bool = True
    mlp_bias: bool = False
    mlp_output_bias: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    lm_head_bias: bool = False
    parallel_block: bool = False
    separate_mlp_norm: bool = False
    input_norms: bool = True
    output_norms: bool = False
    qk_norm: bool = False
    qk_norm_across_heads: bool = False
    attention_scale: float | None = None
    attention_dropout: float | int | None = 0.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    embedding_scale: float | int = 1.0
    position_rows: int = 0
    position_offset: int = 0
    residual_scale: float | int = 1.0
    residual_shortcuts: bool = False
    logit_scale: float | int = 1.0
    query_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_layers: list[bool] | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None

    qk_head_dim: int | None = None
    v_head_dim: int | None = None
    rotary_pairs: str = ""
    attention_input_size: int | None = None
    mlp_input_size: int | None = None
    output_size: int | None = None
    attention_reads: str = ""
    attention_writes: str = ""
    mlp_reads: str = ""
    mlp_writes: str = ""

    def __post_init__(self, **kwargs: Any) -> None:
        """Set the per-layer keys to their dense values, then let transformers apply the layers'."""
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.attention_scale is None:
            self.attention_scale = self.head_dim**-0.5
        if self.qk_head_dim is None:
            self.qk_head_dim = self.head_dim
        if self.v_head_dim is None:
            self.v_head_dim = self.head_dim
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self._scales_by_length():
            self.allow_global_per_layer_attribute_access = True

    def validate_architecture(self) -> None:
        """Raise on contradicting settings or shapes (called by transformers).

        Raises:
            ValueError: naming the setting or the layer.
        """
        problem = _setting_problem(self)
        if problem:
            raise ValueError(problem)
        assert self.head_dim is not None  # set on construction
        for index, layer in enumerate(self.per_layer_config):
            problem = _layer_problem(layer, self.head_dim // 2, rotates=self.rotates(index))
            if problem:
                raise ValueError(f"layer {index}: {problem}")
        if self.residual_shortcuts:
            problem = _residual_problem(self)
            if problem:
                raise ValueError(problem)

    def validate_rope(self) -> None:
        """Raise on invalid rotary settings; reads the dense number of heads and all layer types."""
        view = self.dense_view()
        view.layer_types = list(self._rope_type_labels)
        super(IntraSliceConfig, view).validate_rope()

    def _scales_by_length(self) -> bool:
        """Return whether a rotary table is of type `longrope`.

        Who loads only the tokenizer, without this code, reads the settings by transformers' base
        class, whose check of `longrope` reads the global number of heads.
        """
        kinds = [self.rope_parameters_of(kind) for kind in self._rope_type_labels]
        return any(kind.get("rope_type") == "longrope" for kind in kinds)

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Complete `rope_parameters`, without adding global keys beside those of layer types."""
        if any(kind in (self.rope_parameters or {}) for kind in self._rope_type_labels):
            self.standardize_rope_params()
            return kwargs
        return super().convert_rope_params_to_dict(**kwargs)

    def dense_view(self) -> IntraSliceConfig:
        """Return a copy without per-layer values, from which the global values can be read."""
        view = copy.copy(self)
        view.__dict__.pop("_heterogeneity_spec", None)
        return view

    def rotates(self, layer: int) -> bool:
        """Return whether a layer has rotary embedding."""
        return self.rope_layers is None or bool(self.rope_layers[layer])

    def rope_parameters_of(self, layer_type: str) -> dict[str, Any]:
        """Return the rotary settings of a layer type: separate ones, or those of all types."""
        parameters = self.rope_parameters or {}
        of_type: dict[str, Any] = parameters.get(layer_type, parameters)
        return of_type


def _setting_problem(config: IntraSliceConfig) -> str | None:
    """Return a description of what is wrong with the global settings, or None."""
    if config.norm_type not in NORM_TYPES:
        return f"norm_type must be one of {', '.join(NORM_TYPES)}, got {config.norm_type}"
    if config.head_dim is None or config.head_dim % 2:
        return f"head_dim must be even, got {config.head_dim}"
    if config.qk_norm and config.norm_type not in RMS_NORM_TYPES:
        return f"qk_norm needs an RMS norm_type, got {config.norm_type}"
    if config.output_norms and config.norm_type not in RMS_NORM_TYPES:
        return f"output_norms need an RMS norm_type, got {config.norm_type}"
    if config.separate_mlp_norm and not config.parallel_block:
        return "separate_mlp_norm needs parallel_block"
    if config.parallel_block and config.output_norms:
        return "parallel_block and output_norms cannot both be set"
    if not config.input_norms and (config.parallel_block or not config.output_norms):
        return "input_norms must be set with parallel_block or without output_norms"
    if config.rope_layers is not None and len(config.rope_layers) != config.num_hidden_layers:
        return f"rope_layers must have {config.num_hidden_layers} entries"
    if config.sliding_window is None and "sliding_attention" in (config.layer_types or ()):
        return "layer_types contains sliding_attention, so sliding_window must be set"
    return None


def _residual_problem(config: IntraSliceConfig) -> str | None:
    """Return a description of what is wrong with a sliced residual stream, or None."""
    if config.parallel_block or config.output_norms or not config.input_norms:
        return "residual_shortcuts need input_norms, without parallel_block and output_norms"
    width: int | None = None
    for index, layer in enumerate(config.per_layer_config):
        sizes = (layer.attention_input_size, layer.mlp_input_size, layer.output_size)
        if any(size is None or size < 1 for size in sizes):
            return f"layer {index}: residual_shortcuts need the widths of the residual stream"
        if layer.num_attention_heads == 0 or layer.intermediate_size == 0:
            return f"layer {index}: residual_shortcuts need both modules in every layer"
        if any(getattr(layer, name) for name in RESIDUAL_PARTS):
            return f"layer {index}: residual_shortcuts exclude {', '.join(RESIDUAL_PARTS)}"
        if width is not None and sizes[0] != width:
            return f"layer {index}: attention_input_size {sizes[0]} != {width}, the output before"
        width = sizes[2]
    if width != config.hidden_size:
        return f"output_size of the last layer must be hidden_size {config.hidden_size}"
    return None


def _layer_problem(layer: Any, total_pairs: int, *, rotates: bool) -> str | None:
    """Return a description of what is wrong with the shape of one layer, or None."""
    heads, groups = layer.num_attention_heads, layer.num_key_value_heads
    for name in RESIDUAL_PARTS:
        dimensions = decode_rotary_pairs(getattr(layer, name))
        if len(dimensions) > 1 or any(own[-1:] >= [layer.hidden_size] for own in dimensions):
            return f"{name} is not a mask of {layer.hidden_size} dimensions"
    if min(heads, groups, layer.qk_head_dim, layer.v_head_dim, layer.intermediate_size) < 0:
        return "a dimension is negative"
    if heads == 0:
        return None
    if groups == 0 or heads % groups:
        return f"{heads} query heads do not divide over {groups} key/value heads"
    if not layer.rotary_pairs:
        wide = 2 * total_pairs
        fits = layer.qk_head_dim == wide if rotates else 0 < layer.qk_head_dim <= wide
        return None if fits else f"qk_head_dim {layer.qk_head_dim} != {wide}"
    pairs = decode_rotary_pairs(layer.rotary_pairs)
    if len(pairs) != groups:
        return f"rotary_pairs describes {len(pairs)} key/value heads, expected {groups}"
    if any(2 * len(kept) != layer.qk_head_dim or kept[-1:] >= [total_pairs] for kept in pairs):
        return f"rotary_pairs {layer.rotary_pairs} does not fit qk_head_dim {layer.qk_head_dim}"
    return None


__all__ = ["IntraSliceConfig", "decode_rotary_pairs", "encode_rotary_pairs"]
