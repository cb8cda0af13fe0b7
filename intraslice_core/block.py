"""One decoder block as weights and pure functions, dense or sliced.

The engine runs blocks through these functions and not through model classes, because it needs the
inner activations that classes hide. Linear weights keep torch's layout, (out_features,
in_features). A sliced q or k head stores the first halves of its kept pairs, then the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A projection: weight (out_features, in_features), bias (out_features,) or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Project (…, in_features) to (…, out_features)."""
        return F.linear(inputs, self.weight, self.bias)


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """What a block needs besides weights."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    """Of the dense model: the softmax scale stays 1/√head_dim."""
    rms_norm_eps: float
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """All weights of one block, dense or sliced."""

    input_norm: Tensor
    query: Linear
    key: Linear
    value: Linear
    attention_output: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    mlp_output: Linear
    rotary_pairs: Tensor | None = None
    """Kept pairs of each KV head, (num_key_value_heads, pairs), ascending; None keeps all."""


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Cosines and sines of positions 0…n-1, each (sequence, head_dim), half-split layout."""

    cos: Tensor
    sin: Tensor

    def of(self, pairs: Tensor | None) -> Rotary:
        """The kept pairs' tables, (num_key_value_heads, sequence, 2·pairs), or all of them."""
        if pairs is None:
            return self
        index = torch.cat((pairs, pairs + self.cos.shape[-1] // 2), dim=-1)
        return Rotary(
            cos=self.cos[:, index].transpose(0, 1), sin=self.sin[:, index].transpose(0, 1)
        )

    def for_queries(self, group: int) -> Rotary:
        """Each KV head's tables repeated for its query heads."""
        if self.cos.dim() == 2:
            return self
        return Rotary(
            cos=self.cos.repeat_interleave(group, 0), sin=self.sin.repeat_interleave(group, 0)
        )

    def rotate(self, heads: Tensor) -> Tensor:
        """Rotate (batch, heads, sequence, width)."""
        first, second = heads.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return heads * self.cos.to(heads.dtype) + turned * self.sin.to(heads.dtype)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of (…, hidden_size), taken in float32."""
    wide = hidden.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(hidden.dtype)


def attention_inputs(hidden: Tensor, weights: BlockWeights, settings: BlockSettings) -> Tensor:
    """Normed hidden states that q, k and v read."""
    return rms_norm(hidden, weights.input_norm, settings.rms_norm_eps)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """(batch, sequence, heads · width) → (batch, heads, sequence, width)."""
    return projected.view(*projected.shape[:-1], heads, -1).transpose(1, 2)


def rotated_queries_and_keys(
    normed: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    """Queries and keys after RoPE, each (batch, heads, sequence, 2·pairs)."""
    group = settings.num_attention_heads // settings.num_key_value_heads
    tables = rotary.of(weights.rotary_pairs)
    query = _split_heads(weights.query(normed), settings.num_attention_heads)
    key = _split_heads(weights.key(normed), settings.num_key_value_heads)
    return tables.for_queries(group).rotate(query), tables.rotate(key)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention. Widths are padded to be equal: fused kernels refuse anything else."""
    width = max(query.shape[-1], value.shape[-1])
    query, key, padded = (F.pad(part, (0, width - part.shape[-1])) for part in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, padded, is_causal=True, scale=scale)
    return out[..., : value.shape[-1]]


def attention_inner(
    normed: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary
) -> Tensor:
    """`o`: what the output projection reads, (batch, sequence, num_attention_heads · v_head_dim).

    Args:
        normed: (batch, sequence, hidden_size), from `attention_inputs`.
        weights: of the block.
        settings: of the block.
        rotary: tables of at least `sequence` positions.
    """
    group = settings.num_attention_heads // settings.num_key_value_heads
    query, key = rotated_queries_and_keys(normed, weights, settings, rotary)
    value = _split_heads(weights.value(normed), settings.num_key_value_heads)
    out = _causal_attention(
        query,
        key.repeat_interleave(group, 1),
        value.repeat_interleave(group, 1),
        settings.head_dim**-0.5,
    )
    return out.transpose(1, 2).flatten(2)


def mlp_inner(hidden: Tensor, weights: BlockWeights, settings: BlockSettings) -> Tensor:
    """`u`: what the down projection reads, (batch, sequence, intermediate_size)."""
    normed = rms_norm(hidden, weights.mlp_norm, settings.rms_norm_eps)
    return settings.activation(weights.gate(normed)) * weights.up(normed)


def attention(
    hidden: Tensor, weights: BlockWeights, settings: BlockSettings, rotary: Rotary
) -> Tensor:
    """What the attention module adds to the stream, (batch, sequence, hidden_size)."""
    normed = attention_inputs(hidden, weights, settings)
    return weights.attention_output(attention_inner(normed, weights, settings, rotary))


def mlp(hidden: Tensor, weights: BlockWeights, settings: BlockSettings) -> Tensor:
    """What the MLP adds to the stream, (batch, sequence, hidden_size)."""
    return weights.mlp_output(mlp_inner(hidden, weights, settings))
