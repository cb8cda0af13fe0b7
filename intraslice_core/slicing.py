"""Applies choices to weights: the only place where a tensor shrinks.

Each function takes block weights and returns new ones; shapes change, never function: the sliced
module equals the full-size one with the same projection or mask.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear, Norm, NormType
from intraslice_core.statistics import HeadEnergies


def _rows(linear: Linear, index: Tensor) -> Linear:
    """The output features `index` of a projection."""
    bias = None if linear.bias is None else linear.bias[index]
    return Linear(weight=linear.weight[index], bias=bias)


def _head_rows(per_head: Tensor, head_dim: int) -> Tensor:
    """Row numbers of a projection from each head's own: (heads, rows) → (heads · rows,)."""
    offsets = torch.arange(per_head.shape[0], device=per_head.device) * head_dim
    return (per_head + offsets.unsqueeze(-1)).flatten()


def slice_rotary_pairs(
    weights: LayerWeights,
    pairs: Tensor,
    settings: LayerSettings,
    energies: HeadEnergies | None = None,
) -> LayerWeights:
    """Keep the rotary pairs `pairs` of each KV head and of the query heads that read it.

    Args:
        weights: with all pairs in place.
        pairs: (num_key_value_heads, keep), ascending.
        settings: of the block.
        energies: of queries and keys before their norm, where there is one; None says that what
            goes has none.
    """
    dimensions = torch.cat((pairs, pairs + settings.head_dim // 2), dim=-1)
    group = weights.num_attention_heads // weights.num_key_value_heads
    per_query_head = dimensions.repeat_interleave(group, 0)

    def kept_norm(norm: Tensor | None, energy: Tensor | None) -> Tensor | None:
        kept = None if norm is None else norm.gather(1, dimensions)
        if kept is None or energy is None:
            return kept
        return fold_dropped_energy(kept, energy, pairs, settings.norm_type)

    return replace(
        weights,
        query=_rows(weights.query, _head_rows(per_query_head, settings.head_dim)),
        key=_rows(weights.key, _head_rows(dimensions, settings.head_dim)),
        query_norm=kept_norm(weights.query_norm, None if energies is None else energies.query),
        key_norm=kept_norm(weights.key_norm, None if energies is None else energies.key),
        rotary_pairs=pairs,
    )


def fold_dropped_energy(norm: Tensor, energy: Tensor, pairs: Tensor, norm_type: NormType) -> Tensor:
    """Weights of a query or key norm that makes up for the pairs its heads lost.

    A head `q` of width e is normed to `w ∘ q / √(‖q‖²/e + ε)`. The sliced head holds the part `q_K`
    of kept pairs only, and its norm divides by `√(‖q_K‖²/e + ε)`, with the same, dense e: where the
    dropped pairs are exactly zero, `‖q_K‖ = ‖q‖` and every kept entry comes out as before. A norm
    over the kept width would divide by another e and change all scores.

    Where they are not zero the sliced divisor is too small, by `√(‖q_K‖²/‖q‖²)` if ε is neglected.
    That share varies with the token; its place is taken by the calibrated
    `E‖q_K‖² / E‖q‖² = 1 / (1 + dropped/kept)`, one number a KV head, folded into the weights:

        w' = w / √(1 + dropped/kept)

    Only this replacement of a token's share by the mean one is an approximation (and ε, which now
    counts for more by the same share).

    Args:
        norm: weights of the kept dimensions, (num_key_value_heads, 2·keep).
        energy: mean `‖q_pair‖²` before the norm, (num_key_value_heads, pairs of a dense head).
        pairs: kept ones, (num_key_value_heads, keep).
        norm_type: `rms_plus_one` stores `w - 1`.
    """
    kept = energy.gather(1, pairs).sum(1, keepdim=True)
    total = energy.sum(1, keepdim=True)
    # A head without any energy has nothing to make up for.
    factor = torch.where(kept > 0, (kept / total).sqrt(), torch.ones_like(kept))
    wide, shift = norm.to(factor), float(norm_type == "rms_plus_one")
    return ((wide + shift) * factor - shift).to(norm.dtype)


def weight_energies(weights: LayerWeights) -> HeadEnergies:
    """What `HeadEnergies` would be if the block's normed inputs were white: for the naive baseline.

    A dimension's energy is then the squared norm of its row and of its bias.
    """
    groups = weights.num_key_value_heads

    def energy(linear: Linear) -> Tensor:
        rows = linear.weight.double().square().sum(-1)
        if linear.bias is not None:
            rows = rows + linear.bias.double().square()
        head_dim = weights.key.weight.shape[0] // groups
        return rows.view(groups, -1, 2, head_dim // 2).sum((1, 2))

    return HeadEnergies(query=energy(weights.query), key=energy(weights.key))


def slice_heads(weights: LayerWeights, groups: Tensor, queries: Tensor) -> LayerWeights:
    """Keep whole KV groups, and in each of them equally many query heads.

    The output projection loses the columns of what is gone, so that the result equals the block
    with those heads' outputs set to zero; a refit may follow.

    Args:
        weights: dense or sliced.
        groups: kept KV heads, (kept_groups,), ascending; none removes the attention.
        queries: kept query heads within each kept group, (kept_groups, kept_queries), ascending.
    """
    if groups.numel() == 0 or queries.numel() == 0:
        return remove_attention(weights)
    group = weights.num_attention_heads // weights.num_key_value_heads
    heads = (groups.unsqueeze(-1) * group + queries).flatten()
    qk_width = weights.key.weight.shape[0] // weights.num_key_value_heads
    v_width = weights.value.weight.shape[0] // weights.num_key_value_heads

    def of(chosen: Tensor, width: int) -> Tensor:
        every = torch.arange(width, device=chosen.device).expand(chosen.shape[0], width)
        return (every + chosen.unsqueeze(-1) * width).flatten()

    def kept(per_group: Tensor | None) -> Tensor | None:
        return None if per_group is None else per_group[groups]

    return replace(
        weights,
        num_key_value_heads=groups.shape[0],
        query=_rows(weights.query, of(heads, qk_width)),
        key=_rows(weights.key, of(groups, qk_width)),
        value=_rows(weights.value, of(groups, v_width)),
        attention_output=select_inputs(weights.attention_output, of(heads, v_width)),
        query_norm=kept(weights.query_norm),
        key_norm=kept(weights.key_norm),
        rotary_pairs=kept(weights.rotary_pairs),
    )


def remove_attention(weights: LayerWeights) -> LayerWeights:
    """The block without its attention, whose output bias goes, too; the norms stay."""

    def head_norm(norm: Tensor | None) -> Tensor | None:
        return None if norm is None else norm[:0]

    return replace(
        weights,
        num_key_value_heads=0,
        query=_no_rows(weights.query),
        key=_no_rows(weights.key),
        value=_no_rows(weights.value),
        attention_output=_no_inputs(weights.attention_output),
        query_norm=head_norm(weights.query_norm),
        key_norm=head_norm(weights.key_norm),
        rotary_pairs=head_norm(weights.rotary_pairs),
    )


def remove_mlp(weights: LayerWeights) -> LayerWeights:
    """The block without its MLP, whose output bias goes, too; the norms stay."""
    return replace(
        weights,
        gate=None if weights.gate is None else _no_rows(weights.gate),
        up=_no_rows(weights.up),
        mlp_output=_no_inputs(weights.mlp_output),
    )


def _no_rows(linear: Linear) -> Linear:
    return Linear(weight=linear.weight[:0])


def _no_inputs(linear: Linear) -> Linear:
    return Linear(weight=linear.weight[:, :0])


def project_values(weights: LayerWeights, basis: Tensor) -> LayerWeights:
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


def with_bias_row(projection: Tensor, output: Linear) -> Tensor:
    """Let the constant that stands for the bias pass a projection untouched."""
    if output.bias is None:
        return projection
    padded: Tensor = torch.block_diag(projection, projection.new_ones(1, 1))  # type: ignore[no-untyped-call]
    return padded


def slice_neurons(weights: LayerWeights, kept: Tensor) -> LayerWeights:
    """Keep the MLP neurons `kept` (keep,); the down projection is left to the caller."""
    gate = None if weights.gate is None else _rows(weights.gate, kept)
    return replace(weights, gate=gate, up=_rows(weights.up, kept))


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


def rounded_to(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    """The block as it will be read back after being stored in `dtype`; its own dtype stays.

    Contiguous, as a file's content is: products of other layouts may round otherwise, and a run
    that goes on from the file must see what this one sees.
    """

    def read_back(value: Tensor) -> Tensor:
        return value.to(dtype).to(value).contiguous()

    def stored(value: object) -> object:
        if isinstance(value, Linear | Norm):
            bias = None if value.bias is None else read_back(value.bias)
            return replace(value, weight=read_back(value.weight), bias=bias)
        if isinstance(value, Tensor) and value.is_floating_point():
            return read_back(value)
        return value

    return LayerWeights(
        **{place.name: stored(getattr(weights, place.name)) for place in fields(weights)}  # type: ignore[arg-type]
    )
