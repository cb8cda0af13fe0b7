"""Slicing: application of a selection to weights; the only module where tensors shrink.

Each function takes layer weights and returns new ones. Slicing changes shapes, never the function:
the sliced module equals the full-size module with the same projection or mask.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Linear, Norm, NormType
from intraslice_core.rotary_statistics import HeadEnergies


def _rows(linear: Linear, index: Tensor) -> Linear:
    """Return a projection to the output features `index` only."""
    bias = None if linear.bias is None else linear.bias[index]
    return replace(linear, weight=linear.weight[index], bias=bias)


def _head_rows(per_head: Tensor, head_dim: int) -> Tensor:
    """Return rows of a projection from rows within heads: (heads, rows) → (heads · rows,)."""
    offsets = torch.arange(per_head.shape[0], device=per_head.device) * head_dim
    return (per_head + offsets.unsqueeze(-1)).flatten()


def slice_rotary_pairs(
    weights: LayerWeights,
    pairs: Tensor,
    settings: LayerSettings,
    energies: HeadEnergies | None = None,
) -> LayerWeights:
    """Keep the rotary pairs `pairs` of each KV head and of the query heads in its group.

    Args:
        weights: layer with all pairs in place.
        pairs: (num_key_value_heads, keep), ascending, int64.
        settings: of the layer.
        energies: of queries and keys before their norm; None leaves the weights of a head norm
            unscaled, which is exact if the removed pairs are zero.
    """
    dimensions = torch.cat((pairs, pairs + settings.head_dim // 2), dim=-1)
    group = weights.num_attention_heads // weights.num_key_value_heads
    per_query_head = dimensions.repeat_interleave(group, 0)

    def sliced_norm(norm: Tensor | None, energy: Tensor | None) -> Tensor | None:
        if norm is None:
            return None
        kept = dimensions if len(norm) == len(dimensions) else per_query_head
        sliced = norm.gather(1, kept)
        return sliced if energy is None else _folded(sliced, energy, pairs, settings)

    return replace(
        weights,
        query=_rows(weights.query, _head_rows(per_query_head, settings.head_dim)),
        key=_rows(weights.key, _head_rows(dimensions, settings.head_dim)),
        query_norm=sliced_norm(weights.query_norm, None if energies is None else energies.query),
        key_norm=sliced_norm(weights.key_norm, None if energies is None else energies.key),
        rotary_pairs=pairs,
    )


def _folded(norm: Tensor, energy: Tensor, pairs: Tensor, settings: LayerSettings) -> Tensor:
    """Return norm weights that compensate for removed pairs; see `fold_dropped_energy`.

    Args:
        norm: weights of the kept dimensions, (weighted heads, 2·keep).
        energy: mean `‖pair‖²` before the norm, (heads, pairs of a dense head).
        pairs: kept pairs, (num_key_value_heads, keep), int64.
        settings: of the layer.
    """
    groups, keep = pairs.shape
    grouped = energy.view(groups, -1, energy.shape[-1])
    remaining = grouped.gather(2, pairs.unsqueeze(1).expand(-1, grouped.shape[1], keep)).sum(2)
    # The energy of a norm's scope: a KV group, or all heads.
    scope = (0, 1) if settings.qk_norm_across_heads else 1
    return fold_dropped_energy(
        norm, remaining.sum(scope), grouped.sum(2).sum(scope), settings.norm_type
    )


def fold_dropped_energy(
    norm: Tensor, remaining: Tensor, total: Tensor, norm_type: NormType
) -> Tensor:
    """Return the weights of a query or key norm that compensate for the removed pairs.

    A head `q` of width e is normed to `w ∘ q / √(‖q‖²/e + ε)`. The sliced head has only the part
    `q_K` of kept pairs, and its norm divides by `√(‖q_K‖²/e + ε)` with the same dense e. Where the
    removed pairs are exactly zero, `‖q_K‖ = ‖q‖` and the kept entries do not change. A norm over
    the kept width would divide by another e and change all scores.

    Where the removed pairs are not zero, the divisor is too small by the factor `√(‖q_K‖²/‖q‖²)`
    (neglecting ε). This share varies with the token. It is replaced by the calibrated mean
    `E‖q_K‖² / E‖q‖² = 1 / (1 + removed/kept)`, one number per KV head (or for all heads, where they
    share a norm), folded into the weights:

        w' = w / √(1 + removed/kept)

    The replacement of the token's share by the mean is the only approximation, besides ε, which
    now counts for more by the same factor. See docs/method.md, section 3c.

    Args:
        norm: weights of the kept dimensions, (heads, 2·keep).
        remaining: mean energy before the norm of what is kept, (heads,), or () for all heads.
        total: mean energy of everything, shape of `remaining`.
        norm_type: `rms_plus_one` stores `w - 1`.

    Returns:
        Shape and dtype of `norm`.
    """
    # A head without any energy needs no compensation.
    factor = torch.where(remaining > 0, (remaining / total).sqrt(), torch.ones_like(remaining))
    wide, shift = norm.to(factor), float(norm_type == "rms_plus_one")
    factor = factor.unsqueeze(-1)
    return ((wide + shift) * factor - shift).to(norm.dtype)


def weight_energies(weights: LayerWeights) -> HeadEnergies:
    """Return `HeadEnergies` under the assumption of white normed inputs (magnitude pruning).

    A dimension's energy is then the squared norm of its row plus its squared bias.
    """
    groups = weights.num_key_value_heads

    def energy(linear: Linear) -> Tensor:
        rows = linear.weight.double().square().sum(-1)
        if linear.bias is not None:
            rows = rows + linear.bias.double().square()
        head_dim = weights.key.weight.shape[0] // groups
        return rows.view(-1, 2, head_dim // 2).sum(1)

    return HeadEnergies(query=energy(weights.query), key=energy(weights.key))


def slice_heads(
    weights: LayerWeights,
    groups: Tensor,
    queries: Tensor,
    settings: LayerSettings,
    energies: HeadEnergies | None = None,
) -> LayerWeights:
    """Keep whole KV groups and equally many query heads in each of them.

    The output projection loses the columns of the removed heads, so that the result equals the
    layer with those heads' outputs set to zero. A refit may follow.

    Args:
        weights: dense or sliced layer.
        groups: KV heads to keep, (kept_groups,), ascending; an empty tensor removes the attention.
        queries: query heads to keep, numbered within each kept group,
            (kept_groups, kept_queries), ascending.
        settings: of the layer.
        energies: of queries and keys before their norm; where all heads share a norm, they make up
            for the removed heads. None leaves its weights, which is exact if those heads are zero.
    """
    if groups.numel() == 0 or queries.numel() == 0:
        return remove_attention(weights)
    group = weights.num_attention_heads // weights.num_key_value_heads
    heads = (groups.unsqueeze(-1) * group + queries).flatten()
    qk_width = weights.key.weight.shape[0] // weights.num_key_value_heads
    v_width = weights.value.weight.shape[0] // weights.num_key_value_heads

    def rows_of(heads: Tensor, width: int) -> Tensor:
        offsets = torch.arange(width, device=heads.device).expand(heads.shape[0], width)
        return (offsets + heads.unsqueeze(-1) * width).flatten()

    def norm_of(norm: Tensor | None, kept: Tensor, energy: Tensor | None) -> Tensor | None:
        if norm is None:
            return None
        if not settings.qk_norm_across_heads:
            return norm[groups]
        if energy is None:
            return norm[kept]
        energy = _of_pairs(energy, weights.rotary_pairs)
        return fold_dropped_energy(norm[kept], energy[kept].sum(), energy.sum(), settings.norm_type)

    return replace(
        weights,
        num_key_value_heads=groups.shape[0],
        query=_rows(weights.query, rows_of(heads, qk_width)),
        key=_rows(weights.key, rows_of(groups, qk_width)),
        value=_rows(weights.value, rows_of(groups, v_width)),
        attention_output=select_inputs(weights.attention_output, rows_of(heads, v_width)),
        query_norm=norm_of(weights.query_norm, heads, None if energies is None else energies.query),
        key_norm=norm_of(weights.key_norm, groups, None if energies is None else energies.key),
        rotary_pairs=None if weights.rotary_pairs is None else weights.rotary_pairs[groups],
    )


def _of_pairs(energy: Tensor, pairs: Tensor | None) -> Tensor:
    """Return each head's energy in the kept pairs, (heads,), from that of all, (heads, pairs)."""
    if pairs is None:
        return energy.sum(1)
    return energy.gather(1, pairs.repeat_interleave(len(energy) // len(pairs), 0)).sum(1)


def no_pairs(device: torch.device) -> Tensor:
    """Return the kept pairs of a layer without attention, (0, 0), int64."""
    return torch.empty(0, 0, dtype=torch.long, device=device)


def remove_attention(weights: LayerWeights) -> LayerWeights:
    """Return the layer without its attention and the attention's output bias; norms remain."""

    def emptied(per_group: Tensor | None) -> Tensor | None:
        return None if per_group is None else per_group[:0]

    return replace(
        weights,
        num_key_value_heads=0,
        query=_no_rows(weights.query),
        key=_no_rows(weights.key),
        value=_no_rows(weights.value),
        attention_output=_no_inputs(weights.attention_output),
        query_norm=emptied(weights.query_norm),
        key_norm=emptied(weights.key_norm),
        rotary_pairs=emptied(weights.rotary_pairs),
    )


def remove_mlp(weights: LayerWeights) -> LayerWeights:
    """Return the layer without its MLP and the MLP's output bias; norms remain."""
    return replace(
        weights,
        gate=None if weights.gate is None else _no_rows(weights.gate),
        up=_no_rows(weights.up),
        mlp_output=_no_inputs(weights.mlp_output),
    )


def remove_layer(weights: LayerWeights) -> LayerWeights:
    """Return the layer without both modules, which passes hidden states on; norms remain."""
    return remove_mlp(remove_attention(weights))


def _no_rows(linear: Linear) -> Linear:
    return Linear(weight=linear.weight[:0])


def _no_inputs(linear: Linear) -> Linear:
    return Linear(weight=linear.weight[:, :0])


def project_values(weights: LayerWeights, basis: Tensor) -> LayerWeights:
    """Apply `Wv ← Wv B` to every KV group; the caller replaces the output projection.

    Args:
        weights: layer with the dense value width.
        basis: (num_key_value_heads, head_dim, keep).
    """
    return replace(weights, value=_through(weights.value, basis))


def _through(linear: Linear, basis: Tensor) -> Linear:
    """Multiply the outputs of every head by its matrix, (heads, head_dim, keep)."""
    heads, head_dim, _ = basis.shape

    def through(rows: Tensor) -> Tensor:
        wide = rows.to(basis.dtype).view(heads, head_dim, -1)
        return (basis.mT @ wide).flatten(0, 1).to(rows.dtype)

    bias = linear.bias
    return Linear(
        weight=through(linear.weight),
        bias=None if bias is None else through(bias.unsqueeze(-1)).squeeze(-1),
    )


def project_queries_and_keys(weights: LayerWeights, query: Tensor, key: Tensor) -> LayerWeights:
    """Apply `Wq ← Wq A` and `Wk ← Wk B` in every KV group of a layer without RoPE.

    Args:
        weights: layer with the dense query/key width.
        query: `A`, (num_key_value_heads, head_dim, keep).
        key: `B`, of the same shape.
    """
    group = weights.num_attention_heads // weights.num_key_value_heads
    per_head = query.repeat_interleave(group, 0)
    return replace(weights, query=_through(weights.query, per_head), key=_through(weights.key, key))


def value_projection(basis: Tensor, num_attention_heads: int) -> Tensor:
    """Return the block-diagonal `P` of all query heads from the bases of their KV groups.

    Args:
        basis: (num_key_value_heads, head_dim, keep).
        num_attention_heads: query heads.

    Returns:
        (num_attention_heads · head_dim, num_attention_heads · keep), dtype of `basis`.
    """
    group = num_attention_heads // basis.shape[0]
    wide: Tensor = torch.block_diag(*basis.repeat_interleave(group, 0))  # type: ignore[no-untyped-call]
    return wide


def with_bias_row(projection: Tensor, output: Linear) -> Tensor:
    """Extend a projection by the identity on the constant that stands for a bias of `output`."""
    if output.bias is None:
        return projection
    padded: Tensor = torch.block_diag(projection, projection.new_ones(1, 1))  # type: ignore[no-untyped-call]
    return padded


def slice_neurons(weights: LayerWeights, kept: Tensor) -> LayerWeights:
    """Keep the MLP neurons `kept`, (keep,); the caller replaces the down projection."""
    gate = None if weights.gate is None else _rows(weights.gate, kept)
    return replace(weights, gate=gate, up=_rows(weights.up, kept))


def neurons_first(weights: LayerWeights, kept: Tensor) -> LayerWeights:
    """Return the same MLP with the neurons `kept`, (keep,), before the others."""
    others = torch.ones(weights.up.weight.shape[0], dtype=torch.bool, device=kept.device)
    others[kept] = False
    order = torch.cat((kept, others.nonzero().squeeze(-1)))
    output = select_inputs(weights.mlp_output, order)
    return replace(slice_neurons(weights, order), mlp_output=output)


def project_inputs(linear: Linear, projection: Tensor) -> Linear:
    """Return a projection that reads `Pᵀz` instead of `z`; P is (in_features, kept)."""
    weight = linear.weight.to(projection.dtype) @ projection
    return Linear(weight=weight.to(linear.weight.dtype), bias=linear.bias)


def select_inputs(linear: Linear, kept: Tensor) -> Linear:
    """Return a projection that reads the input features `kept` only, (kept,)."""
    return replace(linear, weight=linear.weight[:, kept].contiguous())


def output_projection(fitted: Tensor, like: Linear) -> Linear:
    """Convert a fitted solution to a projection in the dtype of `like`.

    Args:
        fitted: (inner [+ 1], hidden_size); the last row, present if `like` has a bias, becomes the
            bias.
        like: projection that is replaced.
    """
    dtype = like.weight.dtype
    if like.bias is None:
        return Linear(weight=fitted.mT.to(dtype).contiguous())
    return Linear(weight=fitted[:-1].mT.to(dtype).contiguous(), bias=fitted[-1].to(dtype))


def rounded_to(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    """Round the layer's weights to `dtype`, as if they were stored and read back in their dtype.

    The tensors are contiguous, like those read from a file: products of other layouts may round
    differently, and a run resumed from the file must compute the same as this one.
    """

    def round_tensor(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).to(tensor).contiguous()

    def round_part(part: object) -> object:
        if isinstance(part, Linear | Norm):
            bias = None if part.bias is None else round_tensor(part.bias)
            return replace(part, weight=round_tensor(part.weight), bias=bias)
        if isinstance(part, Tensor) and part.is_floating_point():
            return round_tensor(part)
        return part

    return LayerWeights(
        **{part.name: round_part(getattr(weights, part.name)) for part in fields(weights)}  # type: ignore[arg-type]
    )
