"""Configuration of a Llama whose layers differ in shape.

This file travels inside the checkpoint: it imports nothing but transformers (and the validation
that transformers' own configurations use).

The global values are the dense model's; `per_layer_config` says what each layer kept:
`num_attention_heads`, `num_key_value_heads`, `qk_head_dim` (two dimensions a rotary pair),
`v_head_dim`, `intermediate_size` and `rotary_pairs`. A layer with 0 query heads has no attention,
one with `intermediate_size` 0 has no MLP. `head_dim` stays the dense head dim: the softmax scale
and the rotary frequencies come from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig


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
class IntraSliceLlamaConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """A Llama with its own heads, head dims and MLP width in every layer."""

    model_type = "intraslice_llama"
    # Attention is left out: splitting its columns over devices would need the rotary index split
    # with them.
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    qk_head_dim: int | None = None
    v_head_dim: int | None = None
    rotary_pairs: str = ""

    def __post_init__(self, **kwargs: Any) -> None:
        """Give the per-layer keys their dense values, then let transformers apply the layers'."""
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.qk_head_dim is None:
            self.qk_head_dim = self.head_dim
        if self.v_head_dim is None:
            self.v_head_dim = self.head_dim
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def validate_architecture(self) -> None:
        """Check that every layer is rectangular (transformers calls this on construction).

        Raises:
            ValueError: naming the layer at fault.
        """
        assert self.head_dim is not None  # set on construction
        for index, layer in enumerate(self.per_layer_config):
            fault = _layer_fault(layer, self.head_dim // 2)
            if fault:
                raise ValueError(f"layer {index}: {fault}")


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


__all__ = ["IntraSliceLlamaConfig", "decode_rotary_pairs", "encode_rotary_pairs"]
