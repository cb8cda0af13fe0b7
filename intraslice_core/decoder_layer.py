"""One decoder layer, dense or sliced: its weights and its forward pass as pure functions.

The engine uses these functions instead of model classes because it needs inner activations, which
the classes do not expose. Families differ in the parts of a layer and in settings, never in code:
an absent part is None, a removed module has projections of width 0.

Linear weights have torch's layout, (out_features, in_features). A query or key head stores the
first dimensions of all its pairs, then the second ones (half-split layout). Pairs that do not
rotate come after those that do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from intraslice_core import attention_kernels

Activation = Callable[[Tensor], Tensor]
NormType = Literal[
    "rms", "rms_plus_one", "rms_float32", "layer", "layer_plus_one", "layer_without_bias"
]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A projection: weight (out_features, in_features), bias (out_features,) or None."""

    weight: Tensor
    bias: Tensor | None = None
    reads: Tensor | None = None
    """Features of the input that the columns belong to, ascending, int64; None for all."""
    writes: Tensor | None = None
    """Features of the output that the rows belong to, ascending, int64; the others are zero. None
    for all."""
    out_features: int = 0
    """Features of the output, where `writes` is given."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Project (…, in_features) to (…, out_features)."""
        if self.reads is not None:
            inputs = inputs.index_select(-1, self.reads)
        outputs = F.linear(inputs, self.weight, self.bias)
        if self.writes is None:
            return outputs
        full = outputs.new_zeros(*outputs.shape[:-1], self.out_features)
        return full.index_copy(-1, self.writes, outputs)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Weight and, for a LayerNorm, bias of a norm, each (hidden_size,)."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class QueryScaling:
    """Factor on the query at position p, `1 + beta · log(1 + ⌊p / length⌋)` (Ministral 3)."""

    beta: float
    length: int

    def factors(self, positions: int, like: Tensor) -> Tensor:
        """Return the factors at positions 0 … n-1, (n, 1), dtype and device of `like`."""
        steps = torch.floor(torch.arange(positions, device=like.device) / self.length)
        return (1 + self.beta * torch.log(1 + steps)).to(like.dtype).unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """Settings of a layer's forward pass."""

    num_attention_heads: int
    """Query heads of the dense model; the number in a sliced layer follows from its weights."""
    num_key_value_heads: int
    """KV heads of the dense model."""
    head_dim: int
    """Head dimension of the dense model."""
    activation: Activation
    norm_eps: float
    attention_scale: float
    norm_type: NormType = "rms"
    """Type of every norm. `rms_plus_one` multiplies by 1 + weight and `rms_float32` by weight, both
    in float32; `layer_plus_one` by 1 + weight in the weight's dtype."""
    attn_logit_softcapping: float | None = None
    """Constant c of the cap c·tanh(score/c); None for uncapped scores."""
    sliding_window: int | None = None
    """Number of positions a query attends to, its own included; None for all before it."""
    parallel_block: bool = False
    """Flag of parallel layers, whose attention and MLP read the same hidden states."""
    rotates: bool = True
    """Flag of layers with rotary embedding."""
    qk_norm_across_heads: bool = False
    """Flag of q/k norms whose mean is over all heads of the dense model together."""
    query_scaling: QueryScaling | None = None
    residual_scale: float = 1.0
    """Factor on the contribution of each module to the residual stream."""
    norm_size: int | None = None
    """Number that the sum of squares is divided by in norms of the hidden states; None for their
    own width. In a sliced residual stream it is the dense width."""


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """All weights of one decoder layer, dense or sliced."""

    num_key_value_heads: int
    input_norm: Norm | None
    """Norm of the attention's input; None where it reads the hidden states."""
    query: Linear
    key: Linear
    value: Linear
    attention_output: Linear
    mlp_norm: Norm | None
    """Norm of the MLP's input; None where the MLP reads what the attention reads: in parallel
    layers, and in layers without norms of inputs."""
    gate: Linear | None
    """Gate projection; None in a plain MLP, `act(up x)`."""
    up: Linear
    mlp_output: Linear
    query_norm: Tensor | None = None
    """Query norm before RoPE, shared by a group's queries, (num_key_value_heads, 2·pairs).

    A norm across heads has weights for each query head, (num_attention_heads, 2·pairs).
    """
    key_norm: Tensor | None = None
    """Key norm before RoPE, (num_key_value_heads, 2·pairs)."""
    attention_output_norm: Norm | None = None
    """Norm of the attention's contribution to the residual stream."""
    mlp_output_norm: Norm | None = None
    """Norm of the MLP's contribution to the residual stream."""
    attention_shortcut: Tensor | None = None
    """Matrix on the residual connection past the attention, (width after, width before)."""
    mlp_shortcut: Tensor | None = None
    """Matrix on the residual connection past the MLP, (width after, width before)."""
    rotary_pairs: Tensor | None = None
    """Kept pairs of each KV head, (num_key_value_heads, pairs), ascending; None keeps all."""

    @property
    def has_attention(self) -> bool:
        """Return whether the layer still has its attention."""
        return self.num_key_value_heads > 0

    @property
    def has_mlp(self) -> bool:
        """Return whether the layer still has its MLP."""
        return self.up.weight.shape[0] > 0

    @property
    def num_attention_heads(self) -> int:
        """Return the number of query heads, derived from the widths of queries and keys."""
        if not self.has_attention:
            return 0
        group = self.query.weight.shape[0] // self.key.weight.shape[0]
        return self.num_key_value_heads * group


def residual_parts(weights: LayerWeights) -> dict[str, Tensor]:
    """Return the dimensions of the residual stream that the modules read and write, by name.

    A name is missing where all are read or written.
    """
    indices = {
        "attention_reads": weights.query.reads,
        "attention_writes": weights.attention_output.writes,
        "mlp_reads": weights.up.reads,
        "mlp_writes": weights.mlp_output.writes,
    }
    return {name: index for name, index in indices.items() if index is not None}


def with_residual_parts(weights: LayerWeights, parts: Mapping[str, Tensor]) -> LayerWeights:
    """Return a layer whose projections read and write these dimensions of the residual stream.

    Args:
        weights: layer whose projections have as many columns and rows.
        parts: dimensions by name, as from `residual_parts`.
    """
    parts = {name: index.to(weights.up.weight.device) for name, index in parts.items()}
    hidden = next(
        norm.weight.shape[0]
        for norm in (weights.input_norm, weights.attention_output_norm)
        if norm is not None
    )

    def reading(linear: Linear, name: str) -> Linear:
        return replace(linear, reads=parts.get(name))

    def writing(linear: Linear, name: str) -> Linear:
        return replace(linear, writes=parts.get(name), out_features=hidden)

    return replace(
        weights,
        query=reading(weights.query, "attention_reads"),
        key=reading(weights.key, "attention_reads"),
        value=reading(weights.value, "attention_reads"),
        attention_output=writing(weights.attention_output, "attention_writes"),
        gate=None if weights.gate is None else reading(weights.gate, "mlp_reads"),
        up=reading(weights.up, "mlp_reads"),
        mlp_output=writing(weights.mlp_output, "mlp_writes"),
    )


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Cosines and sines of positions 0…n-1, each (sequence, head_dim), half-split layout.

    After `for_pairs` they may be (heads, sequence, 2·pairs).
    """

    cos: Tensor
    sin: Tensor

    def for_pairs(self, pairs: Tensor | None) -> Rotary:
        """Return the tables of the kept pairs of each KV head; None keeps all.

        Args:
            pairs: (num_key_value_heads, pairs).
        """
        if pairs is None:
            return self
        index = torch.cat((pairs, pairs + self.cos.shape[-1] // 2), dim=-1)
        return Rotary(
            cos=self.cos[:, index].transpose(0, 1), sin=self.sin[:, index].transpose(0, 1)
        )

    def for_queries(self, group: int) -> Rotary:
        """Return each KV head's tables repeated for the `group` query heads that share it."""
        if self.cos.dim() == 2:
            return self
        return Rotary(
            cos=self.cos.repeat_interleave(group, 0), sin=self.sin.repeat_interleave(group, 0)
        )

    def rotate(self, heads: Tensor) -> Tensor:
        """Rotate (batch, heads, sequence, width)."""
        cos, sin, half = self.cos.to(heads.dtype), self.sin.to(heads.dtype), heads.shape[-1] // 2
        rotated = heads * cos
        rotated[..., :half] -= heads[..., half:] * sin[..., :half]
        rotated[..., half:] += heads[..., :half] * sin[..., half:]
        return rotated


# -- norms -------------------------------------------------------------------------------------


def _weighted(unit: Tensor, weight: Tensor, norm_type: NormType, dtype: torch.dtype) -> Tensor:
    """Multiply values of unit rms, float32, by an RMSNorm's weight, rounding as the family does."""
    if norm_type == "rms_plus_one":
        return (unit * (1.0 + weight.float())).to(dtype)
    if norm_type == "rms_float32":
        return (weight * unit).to(dtype)
    return weight * unit.to(dtype)


def rms_norm(
    hidden: Tensor,
    weight: Tensor,
    eps: float,
    norm_type: NormType = "rms",
    size: int | None = None,
) -> Tensor:
    """Apply RMSNorm to (…, hidden_size); statistics are in float32.

    The sum of squares is divided by `size`, by default the width.
    """
    wide = hidden.float()
    mean = wide.square().mean(-1, keepdim=True)
    if size is not None:
        mean = mean * (wide.shape[-1] / size)
    unit = wide * torch.rsqrt(mean + eps)
    return _weighted(unit, weight, norm_type, hidden.dtype)


def apply_norm(hidden: Tensor, norm: Norm | None, settings: LayerSettings) -> Tensor:
    """Apply the layer's type of norm to (…, hidden_size); None leaves them as they are."""
    if norm is None:
        return hidden
    weight = norm.weight
    if settings.norm_type in ("rms", "rms_plus_one", "rms_float32"):
        kind, size = settings.norm_type, settings.norm_size
        return rms_norm(hidden, weight, settings.norm_eps, kind, size)
    if settings.norm_type == "layer_plus_one":
        weight = weight + 1.0
    return F.layer_norm(hidden, weight.shape, weight, norm.bias, settings.norm_eps)


def head_norm(heads: Tensor, weight: Tensor, settings: LayerSettings, dense_heads: int) -> Tensor:
    """Apply the norm of query or key heads over their kept pairs.

    The sum of squares is divided by the DENSE head dimension: a removed dimension counts as zero,
    so removing one that is zero changes nothing. With `qk_norm_across_heads`, the sum is over all
    heads and divided by the dense width of all of them.

    Args:
        heads: (batch, heads, sequence, 2·pairs).
        weight: (num_key_value_heads, 2·pairs), shared by the heads of a group, or (heads, 2·pairs).
        settings: of the layer.
        dense_heads: heads of the dense layer.
    """
    batch, _, sequence, width = heads.shape
    grouped = heads.reshape(batch, weight.shape[0], -1, sequence, width)
    wide = grouped.float()
    if settings.qk_norm_across_heads:
        mean = wide.square().sum((1, 2, -1), keepdim=True) / (dense_heads * settings.head_dim)
    else:
        mean = wide.square().sum(-1, keepdim=True) / settings.head_dim
    unit = wide * torch.rsqrt(mean + settings.norm_eps)
    out = _weighted(unit, weight[:, None, None], settings.norm_type, heads.dtype)
    return out.flatten(1, 2)


# -- attention ---------------------------------------------------------------------------------


def attention_inputs(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """Return the normed hidden states that q, k and v read, (batch, sequence, hidden_size)."""
    return apply_norm(hidden, weights.input_norm, settings)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """Split heads: (batch, sequence, heads · width) → (batch, heads, sequence, width)."""
    return projected.view(*projected.shape[:-1], heads, -1).transpose(1, 2)


def queries_and_keys(normed: Tensor, weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """Return queries and keys before norm and RoPE, each (batch, heads, sequence, 2·pairs)."""
    return (
        _split_heads(weights.query(normed), weights.num_attention_heads),
        _split_heads(weights.key(normed), weights.num_key_value_heads),
    )


def normed_and_rotated(
    query: Tensor, key: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    """Apply head norms, RoPE and query scaling, where the layer has them.

    Arguments and result are those of `queries_and_keys`.
    """
    if weights.query_norm is not None:
        query = head_norm(query, weights.query_norm, settings, settings.num_attention_heads)
    if weights.key_norm is not None:
        key = head_norm(key, weights.key_norm, settings, settings.num_key_value_heads)
    if settings.rotates:
        tables = rotary.for_pairs(weights.rotary_pairs)
        group = query.shape[1] // key.shape[1]
        query, key = tables.for_queries(group).rotate(query), tables.rotate(key)
    if settings.query_scaling is not None:
        query = query * settings.query_scaling.factors(query.shape[2], query)
    return query, key


def rotated_queries_and_keys(
    normed: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    """Return queries and keys after norm and RoPE, each (batch, heads, sequence, 2·pairs)."""
    query, key = queries_and_keys(normed, weights)
    return normed_and_rotated(query, key, weights, settings, rotary)


def attention_inner(
    normed: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> Tensor:
    """Return `o`, the input of the attention's output projection.

    Args:
        normed: (batch, sequence, hidden_size), from `attention_inputs`.
        weights: of the layer.
        settings: of the layer.
        rotary: tables of exactly `sequence` positions.

    Returns:
        (batch, sequence, num_attention_heads · v_head_dim), width 0 if the attention is removed.
    """
    if not weights.has_attention:
        return normed.new_zeros(*normed.shape[:-1], 0)
    query, key = rotated_queries_and_keys(normed, weights, settings, rotary)
    return attend(query, key, values(normed, weights), settings)


def values(normed: Tensor, weights: LayerWeights) -> Tensor:
    """Return the value heads, (batch, num_key_value_heads, sequence, v_head_dim)."""
    return _split_heads(weights.value(normed), weights.num_key_value_heads)


def attend(query: Tensor, key: Tensor, value: Tensor, settings: LayerSettings) -> Tensor:
    """Compute attention, (batch, sequence, num_attention_heads · v_head_dim).

    Args:
        query: after norm and RoPE, (batch, num_attention_heads, sequence, 2·pairs).
        key: after norm and RoPE, (batch, num_key_value_heads, sequence, 2·pairs).
        value: (batch, num_key_value_heads, sequence, v_head_dim).
        settings: of the layer.
    """
    if attention_kernels.prefers_blocks(query, settings):
        return attention_kernels.blocked(query, key, value, settings)
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    if settings.attn_logit_softcapping is None:
        out = attention_kernels.fused(query, key, value, settings)
    else:
        out = attention_kernels.softcapped(query, key, value, settings)
    return out.transpose(1, 2).flatten(2)


# -- MLP ---------------------------------------------------------------------------------------


def mlp_inner(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """Return `u`, the input of the down projection, (batch, sequence, intermediate_size).

    Args:
        hidden: hidden states after the attention; the layer's input in a parallel layer.
        weights: of the layer.
        settings: of the layer.
    """
    return mlp_activations(mlp_inputs(hidden, weights, settings), weights, settings)


def mlp_inputs(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """Return the normed hidden states that the MLP reads; `hidden` as in `mlp_inner`."""
    return apply_norm(hidden, weights.mlp_norm or weights.input_norm, settings)


def mlp_activations(normed: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """Return `u` from what `mlp_inputs` returns, (batch, sequence, intermediate_size)."""
    if weights.gate is None:
        return settings.activation(weights.up(normed))
    return settings.activation(weights.gate(normed)) * weights.up(normed)


# -- contributions to the residual stream ------------------------------------------------------


def added(
    inner: Tensor, output: Linear, output_norm: Norm | None, settings: LayerSettings
) -> Tensor:
    """Return a module's contribution to the residual stream, (…, hidden_size), scaled.

    Args:
        inner: inner activations, (…, width).
        output: output projection.
        output_norm: norm of the contribution, if any.
        settings: of the layer.
    """
    return scaled(apply_norm(output(inner), output_norm, settings), settings)


def carried(hidden: Tensor, shortcut: Tensor | None) -> Tensor:
    """Return what the residual connection carries past a module, (…, width after)."""
    return hidden if shortcut is None else F.linear(hidden, shortcut)


def scaled(contribution: Tensor, settings: LayerSettings) -> Tensor:
    """Return a module's contribution times the residual scale."""
    if settings.residual_scale == 1.0:
        return contribution
    return contribution * settings.residual_scale


def attention(
    hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> Tensor:
    """Return the attention's contribution to the residual stream, shape of `hidden`.

    `hidden` is the layer's input, (batch, sequence, hidden_size).
    """
    if not weights.has_attention:
        return torch.zeros_like(hidden)
    normed = attention_inputs(hidden, weights, settings)
    inner = attention_inner(normed, weights, settings, rotary)
    return added(inner, weights.attention_output, weights.attention_output_norm, settings)


def mlp(hidden: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """Return the MLP's contribution to the residual stream; `hidden` as in `mlp_inner`."""
    if not weights.has_mlp:
        return torch.zeros_like(hidden)
    inner = mlp_inner(hidden, weights, settings)
    return added(inner, weights.mlp_output, weights.mlp_output_norm, settings)


def forward(
    hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> Tensor:
    """Return the layer's output from its input, both (batch, sequence, hidden_size)."""
    attended = attention(hidden, weights, settings, rotary)
    if settings.parallel_block:  # added in the same order as in the model classes, which round
        return attended + mlp(hidden, weights, settings) + hidden
    between = carried(hidden, weights.attention_shortcut) + attended
    return carried(between, weights.mlp_shortcut) + mlp(between, weights, settings)
