"""One decoder block as weights and pure functions, dense or sliced.

The engine runs blocks through these functions and not through model classes, because it needs the
inner activations that classes hide. Families differ in what parts a block has and in settings,
never in code: an absent part is None, a module that was removed has projections of width 0.

Linear weights keep torch's layout, (out_features, in_features). A q or k head stores the first
halves of its pairs, then the second, the pairs that do not rotate behind those that do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
NormType = Literal["rms", "rms_plus_one", "layer"]

SCORES_AT_ONCE = 2**24
"""Attention scores held at once where no fused kernel computes them: 64 MiB in float32."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A projection: weight (out_features, in_features), bias (out_features,) or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Project (…, in_features) to (…, out_features)."""
        return F.linear(inputs, self.weight, self.bias)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Weight and, of a LayerNorm, bias, each (hidden_size,)."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """What a block needs besides weights."""

    num_attention_heads: int
    """Of the dense model; a sliced block's own number follows from its weights."""
    num_key_value_heads: int
    """Of the dense model."""
    head_dim: int
    """Of the dense model."""
    activation: Activation
    norm_eps: float
    attention_scale: float
    norm_type: NormType = "rms"
    """`rms_plus_one` multiplies by 1 + weight, in float32."""
    attn_logit_softcapping: float | None = None
    """c of c·tanh(score/c)."""
    sliding_window: int | None = None
    """How many positions a query sees, its own included; None for all before it."""
    parallel_block: bool = False
    """Attention and MLP read the same input and are added together."""


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """All weights of one block, dense or sliced."""

    num_key_value_heads: int
    input_norm: Norm
    query: Linear
    key: Linear
    value: Linear
    attention_output: Linear
    mlp_norm: Norm | None
    """What the MLP reads through; None where it reads the attention's input."""
    gate: Linear | None
    """None in a plain MLP: `act(up x)`."""
    up: Linear
    mlp_output: Linear
    query_norm: Tensor | None = None
    """(num_key_value_heads, 2·pairs), before RoPE; the queries of a group share it."""
    key_norm: Tensor | None = None
    """(num_key_value_heads, 2·pairs)."""
    attention_output_norm: Norm | None = None
    """On what the attention adds to the stream."""
    mlp_output_norm: Norm | None = None
    rotary_pairs: Tensor | None = None
    """Kept pairs of each KV head, (num_key_value_heads, pairs), ascending; None keeps all."""

    @property
    def has_attention(self) -> bool:
        """Whether the attention was not removed."""
        return self.num_key_value_heads > 0

    @property
    def has_mlp(self) -> bool:
        """Whether the MLP was not removed."""
        return self.up.weight.shape[0] > 0

    @property
    def num_attention_heads(self) -> int:
        """Query heads: as many to each KV head as fit its width."""
        if not self.has_attention:
            return 0
        group = self.query.weight.shape[0] // self.key.weight.shape[0]
        return self.num_key_value_heads * group


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


# -- norms -------------------------------------------------------------------------------------


def _weighted(unit: Tensor, weight: Tensor, norm_type: NormType, dtype: torch.dtype) -> Tensor:
    """Apply an RMSNorm's weight to what has unit rms in float32, rounding where the family does."""
    if norm_type == "rms_plus_one":
        return (unit * (1.0 + weight.float())).to(dtype)
    return weight * unit.to(dtype)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float, norm_type: NormType = "rms") -> Tensor:
    """RMSNorm of (…, hidden_size), taken in float32."""
    wide = hidden.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return _weighted(unit, weight, norm_type, hidden.dtype)


def apply_norm(hidden: Tensor, norm: Norm, settings: LayerSettings) -> Tensor:
    """The block's kind of norm on (…, hidden_size)."""
    if settings.norm_type == "layer":
        return F.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, settings.norm_eps)
    return rms_norm(hidden, norm.weight, settings.norm_eps, settings.norm_type)


def head_norm(heads: Tensor, weight: Tensor, settings: LayerSettings) -> Tensor:
    """Norm of query or key heads over the pairs they kept.

    The sum of squares is divided by the DENSE head dim: a dimension that was dropped counts as
    zero, so dropping one that is zero changes nothing.

    Args:
        heads: (batch, heads, sequence, 2·pairs).
        weight: (num_key_value_heads, 2·pairs), shared by the heads of a group.
        settings: of the block.
    """
    batch, _, sequence, width = heads.shape
    grouped = heads.reshape(batch, weight.shape[0], -1, sequence, width)
    wide = grouped.float()
    mean = wide.square().sum(-1, keepdim=True) / settings.head_dim
    unit = wide * torch.rsqrt(mean + settings.norm_eps)
    out = _weighted(unit, weight[:, None, None], settings.norm_type, heads.dtype)
    return out.flatten(1, 2)


# -- attention ---------------------------------------------------------------------------------


def attention_inputs(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """Normed hidden states that q, k and v read."""
    return apply_norm(hidden, weights.input_norm, settings)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """(batch, sequence, heads · width) → (batch, heads, sequence, width)."""
    return projected.view(*projected.shape[:-1], heads, -1).transpose(1, 2)


def queries_and_keys(normed: Tensor, weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """Queries and keys as projected, before norm and RoPE; (batch, heads, sequence, 2·pairs)."""
    return (
        _split_heads(weights.query(normed), weights.num_attention_heads),
        _split_heads(weights.key(normed), weights.num_key_value_heads),
    )


def normed_and_rotated(
    query: Tensor, key: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    """What `queries_and_keys` gave after norm, where there is one, and RoPE; shapes stay."""
    if weights.query_norm is not None:
        query = head_norm(query, weights.query_norm, settings)
    if weights.key_norm is not None:
        key = head_norm(key, weights.key_norm, settings)
    tables = rotary.of(weights.rotary_pairs)
    group = query.shape[1] // key.shape[1]
    return tables.for_queries(group).rotate(query), tables.rotate(key)


def rotated_queries_and_keys(
    normed: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    """Queries and keys after norm and RoPE, each (batch, heads, sequence, 2·pairs)."""
    query, key = queries_and_keys(normed, weights)
    return normed_and_rotated(query, key, weights, settings, rotary)


def _visible(sequence: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys (columns) a query (row) sees; None where plain causality says it all."""
    if window is None or window >= sequence:
        return None
    every = torch.ones(sequence, sequence, dtype=torch.bool, device=device)
    return every.tril().triu(1 - window)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, settings: LayerSettings) -> Tensor:
    """Attention by torch's kernel. Widths are padded to be equal: kernels refuse anything else."""
    width = max(query.shape[-1], value.shape[-1])
    query, key, padded = (F.pad(part, (0, width - part.shape[-1])) for part in (query, key, value))
    mask = _visible(query.shape[-2], settings.sliding_window, query.device)
    out = F.scaled_dot_product_attention(
        query, key, padded, attn_mask=mask, is_causal=mask is None, scale=settings.attention_scale
    )
    return out[..., : value.shape[-1]]


def _softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, settings: LayerSettings, cap: float
) -> Tensor:
    """Attention with capped scores, which no kernel computes: a few heads at a time."""
    sequence = query.shape[-2]
    mask = _visible(sequence, settings.sliding_window, query.device)
    if mask is None:
        mask = torch.ones(sequence, sequence, dtype=torch.bool, device=query.device).tril()
    at_once = max(SCORES_AT_ONCE // sequence**2, 1)
    out = []
    flat = (torch.split(part.flatten(0, 1), at_once) for part in (query, key, value))
    for q, k, v in zip(*flat, strict=True):
        scores = torch.tanh(q @ k.mT * settings.attention_scale / cap) * cap
        scores = scores.masked_fill(~mask, -torch.inf)
        out.append(scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v)
    return torch.cat(out).view(*query.shape[:-1], value.shape[-1])


def attention_inner(
    normed: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> Tensor:
    """`o`: what the output projection reads, (batch, sequence, num_attention_heads · v_head_dim).

    Args:
        normed: (batch, sequence, hidden_size), from `attention_inputs`.
        weights: of the block.
        settings: of the block.
        rotary: tables of at least `sequence` positions.
    """
    if not weights.has_attention:
        return normed.new_zeros(*normed.shape[:-1], 0)
    query, key = rotated_queries_and_keys(normed, weights, settings, rotary)
    return attend(query, key, values(normed, weights), settings)


def values(normed: Tensor, weights: LayerWeights) -> Tensor:
    """Value heads, (batch, num_key_value_heads, sequence, v_head_dim)."""
    return _split_heads(weights.value(normed), weights.num_key_value_heads)


def attend(query: Tensor, key: Tensor, value: Tensor, settings: LayerSettings) -> Tensor:
    """Attention itself, (batch, sequence, num_attention_heads · v_head_dim).

    Args:
        query: (batch, num_attention_heads, sequence, 2·pairs), ready to meet the keys.
        key: (batch, num_key_value_heads, sequence, 2·pairs).
        value: (batch, num_key_value_heads, sequence, v_head_dim).
        settings: of the block.
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    cap = settings.attn_logit_softcapping
    if cap is None:
        out = _fused_attention(query, key, value, settings)
    else:
        out = _softcapped_attention(query, key, value, settings, cap)
    return out.transpose(1, 2).flatten(2)


# -- MLP ---------------------------------------------------------------------------------------


def mlp_inner(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """`u`: what the down projection reads, (batch, sequence, intermediate_size).

    Args:
        hidden: the stream behind the attention; in a parallel block the block's input.
        weights: of the block.
        settings: of the block.
    """
    read = apply_norm(hidden, weights.mlp_norm or weights.input_norm, settings)
    if weights.gate is None:
        return settings.activation(weights.up(read))
    return settings.activation(weights.gate(read)) * weights.up(read)


# -- what is added to the stream ---------------------------------------------------------------


def added(
    inner: Tensor, output: Linear, output_norm: Norm | None, settings: LayerSettings
) -> Tensor:
    """What a module adds to the stream, (…, hidden_size), from its inner activation."""
    projected = output(inner)
    return projected if output_norm is None else apply_norm(projected, output_norm, settings)


def attention(
    hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> Tensor:
    """What the attention module adds to the stream, (batch, sequence, hidden_size)."""
    if not weights.has_attention:
        return torch.zeros_like(hidden)
    read = attention_inputs(hidden, weights, settings)
    inner = attention_inner(read, weights, settings, rotary)
    return added(inner, weights.attention_output, weights.attention_output_norm, settings)


def mlp(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """What the MLP adds to the stream, (batch, sequence, hidden_size); `hidden` as `mlp_inner`."""
    if not weights.has_mlp:
        return torch.zeros_like(hidden)
    inner = mlp_inner(hidden, weights, settings)
    return added(inner, weights.mlp_output, weights.mlp_output_norm, settings)


def forward(
    hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> Tensor:
    """The stream behind the whole block, (batch, sequence, hidden_size), from its input."""
    first = attention(hidden, weights, settings, rotary)
    if settings.parallel_block:  # added in the order in which the model classes round
        return first + mlp(hidden, weights, settings) + hidden
    between = hidden + first
    return between + mlp(between, weights, settings)
