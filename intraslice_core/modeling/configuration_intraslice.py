"""Configuration of a sliced decoder: one architecture for every family, features as settings.

This file travels inside the checkpoint: it imports nothing but transformers (and the validation
that transformers' own configurations use).

The global values are the dense model's; `per_layer_config` says what each layer kept:
`num_attention_heads`, `num_key_value_heads`, `qk_head_dim` (two dimensions a rotary pair),
`v_head_dim`, `intermediate_size` and `rotary_pairs`. A layer with 0 query heads has no attention,
one with `intermediate_size` 0 has no MLP. `head_dim` stays the dense head dim: the rotary
frequencies come from it, and the mean of a query or key norm is over it.

A head has `head_dim // 2` pairs, stored half-split: the first dimension of every pair, then the
second. With partial rotary the pairs that turn come first, then those that stand still.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

NORM_TYPES = ("rms", "rms_plus_one", "layer")
WITHOUT_ATTENTION = "moe"
"""`layer_types` entry of a layer that lost its attention: caches keep nothing for it.

Without it a static cache of a model that lost its first attention counts positions wrongly.
"""


def encode_rotary_pairs(indices: Sequence[Sequence[int]], total: int) -> str:
    """Rotary pairs as text: one hexadecimal bitmask per KV head, joined by commas.

    Args:
        indices: the kept pairs of each KV head, ascending.
        total: pairs of a dense head; every index is below it.

    Raises:
        ValueError: if an index is out of range or the order is not strictly ascending.
    """
    masks = []
    for pairs in indices:
        kept = [int(pair) for pair in pairs]
        if kept != sorted(set(kept)) or any(not 0 <= pair < total for pair in kept):
            raise ValueError(f"rotary pairs must ascend within [0, {total}), got {kept}")
        masks.append(format(sum(1 << pair for pair in kept), "x"))
    return ",".join(masks)


def decode_rotary_pairs(text: str) -> list[list[int]]:
    """The kept pairs of each KV head, ascending; the inverse of `encode_rotary_pairs`."""
    masks = [int(part, 16) for part in text.split(",")] if text else []
    return [[bit for bit in range(mask.bit_length()) if mask >> bit & 1] for mask in masks]


@strict
class IntraSliceConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """A decoder with its own heads, head dims and MLP width in every layer.

    Settings that say which mathematics a family does:
        base_model_type: the dense model's `model_type`; a record, nothing depends on it.
        norm_type: "rms" (`weight * normed`, as Llama rounds it), "rms_plus_one"
            (`(1 + weight) * normed` in float32, Gemma) or "layer" (LayerNorm with bias).
        gated_mlp: `act(gate(x)) * up(x)`; without it `act(up(x))`.
        mlp_bias: of gate, up and down.
        attention_bias: of q, k and v.
        attention_output_bias: of o.
        lm_head_bias: of the head.
        parallel_block: attention and MLP read the same norm, and both are added at once.
        output_norms: a norm on what each module gives, before it is added.
        qk_norm: a norm on every query and key head before they turn.
        attention_scale: of the scores before the softmax; None is `head_dim ** -0.5`.
        attn_logit_softcapping: bound of the scores, or None.
        final_logit_softcapping: bound of the logits, or None.
        embedding_scale: factor on the embeddings, rounded to their dtype first.
        rope_parameters: as transformers has them, one dict or one per layer type.
        layer_types: "full_attention", "sliding_attention" or, without attention, "moe".
        sliding_window: of the layers that slide.
    """

    model_type = "intraslice"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # Attention is left out: splitting its columns over devices would need the rotary index split
    # with them.
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
    # Frequencies stay one set per layer type even if every layer of a type lost its attention.
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
    attention_bias: bool = False
    attention_output_bias: bool = False
    lm_head_bias: bool = False
    parallel_block: bool = False
    output_norms: bool = False
    qk_norm: bool = False
    attention_scale: float | None = None
    attention_dropout: float | int | None = 0.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    embedding_scale: float = 1.0
    rope_parameters: dict[str, Any] | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None

    qk_head_dim: int | None = None
    v_head_dim: int | None = None
    rotary_pairs: str = ""

    def __post_init__(self, **kwargs: Any) -> None:
        """Give the per-layer keys their dense values, then let transformers apply the layers'."""
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

    def validate_architecture(self) -> None:
        """Check settings and that every layer is rectangular (transformers calls this).

        Raises:
            ValueError: naming the setting or the layer at fault.
        """
        fault = _setting_fault(self)
        if fault:
            raise ValueError(fault)
        assert self.head_dim is not None  # set on construction
        for index, layer in enumerate(self.per_layer_config):
            fault = _layer_fault(layer, self.head_dim // 2)
            if fault:
                raise ValueError(f"layer {index}: {fault}")

    def validate_rope(self) -> None:
        """Check the rotary settings, which reads the (dense) number of heads and every type's."""
        view = self.dense_view()
        view.layer_types = list(self._rope_type_labels)
        super(IntraSliceConfig, view).validate_rope()

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Complete `rope_parameters`; settings by layer type get nothing beside them."""
        if any(kind in (self.rope_parameters or {}) for kind in self._rope_type_labels):
            self.standardize_rope_params()
            return kwargs
        return super().convert_rope_params_to_dict(**kwargs)

    def dense_view(self) -> IntraSliceConfig:
        """The same configuration without its layers: the global values may be read from it."""
        view = copy.copy(self)
        view.__dict__.pop("_heterogeneity_spec", None)
        return view

    def rope_parameters_of(self, layer_type: str) -> dict[str, Any]:
        """The rotary settings of a layer type: its own, or those of all."""
        parameters = self.rope_parameters or {}
        own: dict[str, Any] = parameters.get(layer_type, parameters)
        return own


def _setting_fault(config: IntraSliceConfig) -> str | None:
    """What is wrong with the settings of all layers, or None."""
    if config.norm_type not in NORM_TYPES:
        return f"norm_type must be one of {', '.join(NORM_TYPES)}, got {config.norm_type}"
    if config.head_dim is None or config.head_dim % 2:
        return f"head_dim must be even, got {config.head_dim}"
    if config.qk_norm and config.norm_type == "layer":
        return "qk_norm needs an RMS norm_type, got layer"
    if config.parallel_block and config.output_norms:
        return "parallel_block and output_norms exclude each other"
    if config.sliding_window is None and "sliding_attention" in (config.layer_types or ()):
        return "layer_types names sliding_attention, so sliding_window must be given"
    return None


def _layer_fault(layer: Any, total_pairs: int) -> str | None:
    """What is wrong with the shape of one layer, or None."""
    heads, groups = layer.num_attention_heads, layer.num_key_value_heads
    if min(heads, groups, layer.qk_head_dim, layer.v_head_dim, layer.intermediate_size) < 0:
        return "a dimension is negative"
    if heads == 0:
        return None
    if groups == 0 or heads % groups:
        return f"{heads} query heads do not divide over {groups} key/value heads"
    if not layer.rotary_pairs:
        wide = 2 * total_pairs
        return None if layer.qk_head_dim == wide else f"qk_head_dim {layer.qk_head_dim} != {wide}"
    pairs = decode_rotary_pairs(layer.rotary_pairs)
    if len(pairs) != groups:
        return f"rotary_pairs names {len(pairs)} key/value heads of {groups}"
    if any(2 * len(kept) != layer.qk_head_dim or kept[-1:] >= [total_pairs] for kept in pairs):
        return f"rotary_pairs {layer.rotary_pairs} does not fit qk_head_dim {layer.qk_head_dim}"
    return None


__all__ = ["IntraSliceConfig", "decode_rotary_pairs", "encode_rotary_pairs"]
