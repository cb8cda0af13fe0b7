"""Applies choices to weights: the only place where a tensor shrinks.

Each function takes block weights and returns new ones; shapes change, never function: the sliced
module equals the full-size one with the same projection or mask.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from intraslice_core.block import BlockWeights, Linear


def _rows(linear: Linear, index: Tensor) -> Linear:
    """The output features `index` of a projection."""
    bias = None if linear.bias is None else linear.bias[index]
    return Linear(weight=linear.weight[index], bias=bias)


def _head_rows(per_head: Tensor, head_dim: int) -> Tensor:
    """Row numbers of a projection from each head's own: (heads, rows) → (heads · rows,)."""
    offsets = torch.arange(per_head.shape[0], device=per_head.device) * head_dim
    return (per_head + offsets.unsqueeze(-1)).flatten()


def slice_rotary_pairs(weights: BlockWeights, pairs: Tensor, head_dim: int) -> BlockWeights:
    """Keep the rotary pairs `pairs` of each KV head and of the query heads that read it.

    Args:
        weights: with all pairs in place.
        pairs: (num_key_value_heads, keep), ascending.
        head_dim: of the dense model.
    """
    dimensions = torch.cat((pairs, pairs + head_dim // 2), dim=-1)
    group = weights.query.weight.shape[0] // weights.key.weight.shape[0]
    return replace(
        weights,
        query=_rows(weights.query, _head_rows(dimensions.repeat_interleave(group, 0), head_dim)),
        key=_rows(weights.key, _head_rows(dimensions, head_dim)),
        rotary_pairs=pairs,
    )


def project_values(weights: BlockWeights, basis: Tensor) -> BlockWeights:
    """`Wv ← Wv B` for every KV group; the output projection is left to the caller.

    Args:
        weights: with the full value width.
        basis: (num_key_value_heads, head_dim, keep).
    """
    groups, head_dim, _ = basis.shape

    def through(rows: Tensor) -> Tensor:
        wide = rows.to(basis.dtype).view(groups, head_dim, -1)
        return (basis.mT @ wide).flatten(0, 1).to(rows.dtype)

    bias = weights.value.bias
    return replace(
        weights,
        value=Linear(
            weight=through(weights.value.weight),
            bias=None if bias is None else through(bias.unsqueeze(-1)).squeeze(-1),
        ),
    )


def value_projection(basis: Tensor, num_attention_heads: int) -> Tensor:
    """The block-diagonal P of all heads, (heads · head_dim, heads · keep), from a group's basis."""
    group = num_attention_heads // basis.shape[0]
    wide: Tensor = torch.block_diag(*basis.repeat_interleave(group, 0))  # type: ignore[no-untyped-call]
    return wide


def slice_neurons(weights: BlockWeights, kept: Tensor) -> BlockWeights:
    """Keep the MLP neurons `kept` (keep,); the down projection is left to the caller."""
    return replace(weights, gate=_rows(weights.gate, kept), up=_rows(weights.up, kept))


def project_inputs(linear: Linear, projection: Tensor) -> Linear:
    """A projection that reads `Pᵀz` and not `z`; P is (in_features, kept)."""
    weight = linear.weight.to(projection.dtype) @ projection
    return Linear(weight=weight.to(linear.weight.dtype), bias=linear.bias)


def select_inputs(linear: Linear, kept: Tensor) -> Linear:
    """A projection that reads the input features `kept` only."""
    return Linear(weight=linear.weight[:, kept].contiguous(), bias=linear.bias)


def output_projection(fitted: Tensor, like: Linear) -> Linear:
    """A fitted (inner [+ 1], hidden_size) solution as a projection in the dtype of `like`.

    The appended row, present where `like` has a bias, becomes the bias.
    """
    dtype = like.weight.dtype
    if like.bias is None:
        return Linear(weight=fitted.mT.to(dtype).contiguous())
    return Linear(weight=fitted[:-1].mT.to(dtype).contiguous(), bias=fitted[-1].to(dtype))


def rounded_to(weights: BlockWeights, dtype: torch.dtype) -> BlockWeights:
    """The block as it will be read back after being stored in `dtype`; its own dtype stays.

    Contiguous, as a file's content is: products of other layouts may round otherwise, and a run
    that goes on from the file must see what this one sees.
    """

    def read_back(value: Tensor) -> Tensor:
        return value.to(dtype).to(value).contiguous()

    def stored(value: object) -> object:
        if isinstance(value, Linear):
            bias = None if value.bias is None else read_back(value.bias)
            return Linear(weight=read_back(value.weight), bias=bias)
        if isinstance(value, Tensor) and value.is_floating_point():
            return read_back(value)
        return value

    return BlockWeights(
        **{place.name: stored(getattr(weights, place.name)) for place in fields(weights)}  # type: ignore[arg-type]
    )
