"""Selection of rotary (RoPE) pairs of queries and keys (docs/method.md, section 3c).

Only whole pairs (j, j + e/2) commute with RoPE, so each KV head keeps a subset of its pairs. Pairs
are either ranked by a score of each, (num_key_value_heads, pairs), larger is better, or eliminated
jointly by the effect of their removal on the attention's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.rotary_statistics import RotaryStatistics

# -- scores ------------------------------------------------------------------------------------


def pair_score(
    kind: Literal["product", "energy_product", "centered"], statistics: RotaryStatistics
) -> Tensor:
    """Return the score of every pair, (num_key_value_heads, pairs); higher is more important.

    `product` is that of arXiv 2602.01975, the mean |query · key| per dimension after RoPE.
    `energy_product` is that of arXiv 2408.09632 (CR decomposition), the product of the second
    moments of query and key per dimension, without centring. `centered` is `centered_score`.
    """
    if kind == "centered":
        return centered_score(statistics)
    return statistics.product if kind == "product" else statistics.energy_product


def centered_score(statistics: RotaryStatistics) -> Tensor:
    """Return query energy times key energy, without what is constant over a sequence's keys.

    Softmax does not depend on a constant added to all scores of a query.
    """
    return statistics.query_energy * statistics.centered_key_energy


def magnitude_score(query: Tensor, key: Tensor, num_key_value_heads: int) -> Tensor:
    """Return the product of the squared norms of each pair's query and key rows, float64.

    Args:
        query: q_proj weight, (num_attention_heads · head_dim, hidden_size).
        key: k_proj weight, (num_key_value_heads · head_dim, hidden_size).
        num_key_value_heads: KV heads.
    """
    head_dim = key.shape[0] // num_key_value_heads
    q = query.double().square().sum(-1).view(num_key_value_heads, -1, head_dim).sum(1)
    k = key.double().square().sum(-1).view(num_key_value_heads, head_dim)
    return (q * k).view(num_key_value_heads, 2, head_dim // 2).sum(-2)


def keep_best_pairs(score: Tensor, keep: int) -> Tensor:
    """Return the `keep` best pairs of each KV head, ascending, (num_key_value_heads, keep)."""
    return score.topk(keep, dim=-1).indices.sort(dim=-1).values


# -- joint elimination -------------------------------------------------------------------------

PAIR_DAMPING = 1e-3
"""Relative damping of the features' Gram matrix.

It is estimated from a few sequences, and the features are only a first-order approximation.
"""


@dataclass(frozen=True, kw_only=True)
class PairChoice:
    """The pairs to keep, the query turn that compensates for the others, and the removal costs."""

    kept: Tensor
    """(num_key_value_heads, keep), ascending, int64."""
    turns: Tensor
    """Real and imaginary part of each kept pair's factor, (num_key_value_heads, keep, 2)."""
    removal_cost: Tensor
    """Squared output error at each removal, first removed first,
    (num_key_value_heads, pairs - keep)."""


@dataclass(frozen=True, kw_only=True)
class SharedPairOrder:
    """Order in which all heads lose the same pairs."""

    order: Tensor
    """All pairs, first removed first, (pairs,), int64."""
    removal_cost: Tensor
    """Each head's cost at each removal, (num_key_value_heads, pairs - 1)."""


@dataclass(frozen=True, kw_only=True)
class _Elimination:
    """State of an elimination, of all KV heads at once; `n` pairs of each head remain."""

    alive: Tensor
    """Remaining pairs, (heads, n), int64."""
    coefficients: Tensor
    """Factors of the remaining features, real parts then imaginary parts, (heads, 2n)."""
    inverse: Tensor
    """Inverse of the features' damped Gram matrix, (heads, 2n, 2n), float64."""


@dataclass(frozen=True, kw_only=True)
class _Removal:
    """One pair removed from every head."""

    state: _Elimination
    """State after the removal."""
    cost: Tensor
    """(heads,)."""
    pair: Tensor
    """(heads,), int64."""


def eliminate_pairs(moment: Tensor, keep: int) -> PairChoice:
    """Remove pairs until `keep` remain, each time the cheapest after compensation by the others.

    All KV heads are processed at once; the number of steps is the number of pairs removed.

    Args:
        moment: Gram matrix of the features, (num_key_value_heads, 2·pairs, 2·pairs).
        keep: pairs to keep, at least 1.

    Raises:
        NumericalError: if the matrix is not finite or cannot be factorised.
    """
    heads, pairs = moment.shape[0], moment.shape[-1] // 2
    state = _all_pairs(moment)
    costs = []
    for _ in range(pairs - keep):
        removal = _remove_cheapest(state)
        state = removal.state
        costs.append(removal.cost)
    return PairChoice(
        kept=state.alive,
        turns=torch.unflatten(state.coefficients, -1, (2, keep)).mT,
        removal_cost=torch.stack(costs, dim=-1) if costs else moment.new_empty(heads, 0),
    )


def eliminate_shared_pairs(moment: Tensor) -> SharedPairOrder:
    """Remove one pair after the other from all heads: the one of least cost summed over heads.

    Args:
        moment: as in `eliminate_pairs`, the heads of all layers concatenated.

    Raises:
        NumericalError: if the matrix is not finite or cannot be factorised.
    """
    state = _all_pairs(moment)
    removed, costs = [], []
    for _ in range(moment.shape[-1] // 2 - 1):
        removal = _remove_cheapest(state, shared=True)
        state = removal.state
        costs.append(removal.cost)
        removed.append(removal.pair[0])
    return SharedPairOrder(
        order=torch.stack([*removed, state.alive[0, 0]]),
        removal_cost=torch.stack(costs, dim=-1) if costs else moment.new_empty(len(moment), 0),
    )


def keep_shared_pairs(moment: Tensor, kept: Tensor) -> PairChoice:
    """Keep the given pairs in every KV head and solve for the query turns of each head.

    Args:
        moment: as in `eliminate_pairs`.
        kept: (keep,), ascending, int64.

    Raises:
        NumericalError: if the matrix is not finite or cannot be factorised.
    """
    return keep_given_pairs(moment, kept.expand(moment.shape[0], -1))


def keep_given_pairs(moment: Tensor, kept: Tensor) -> PairChoice:
    """Keep the given pairs of each KV head and solve for the query turns.

    Args:
        moment: as in `eliminate_pairs`.
        kept: (num_key_value_heads, keep), ascending, int64.

    Raises:
        NumericalError: if the matrix is not finite or cannot be factorised.
    """
    heads, pairs = moment.shape[0], moment.shape[-1] // 2
    lower = linalg.damped_cholesky(moment, PAIR_DAMPING).cholesky
    both = torch.cat((kept, kept + pairs), dim=-1)
    rows = _rows(lower @ lower.mT, both)
    own = rows.gather(-1, both[:, None, :].expand(-1, rows.shape[1], -1))
    target = rows[..., :pairs].sum(-1, keepdim=True)
    coefficients = linalg.solve(own, target).squeeze(-1)
    return PairChoice(
        kept=kept,
        turns=torch.unflatten(coefficients, -1, (2, kept.shape[-1])).mT,
        removal_cost=moment.new_empty(heads, 0),
    )


def _all_pairs(moment: Tensor) -> _Elimination:
    """Return the state before any removal."""
    heads, pairs = moment.shape[0], moment.shape[-1] // 2
    inverse = linalg.damped_cholesky(moment, PAIR_DAMPING).inverse()
    ones = inverse.new_ones(heads, pairs)
    return _Elimination(
        alive=torch.arange(pairs, device=moment.device).expand(heads, pairs),
        coefficients=torch.cat((ones, torch.zeros_like(ones)), dim=-1),
        inverse=inverse,
    )


def _remove_cheapest(state: _Elimination, *, shared: bool = False) -> _Removal:
    """Remove the cheapest pair of every head, or with `shared` the pair cheapest in total."""
    left = state.alive.shape[-1]
    index = torch.arange(left, device=state.inverse.device)
    cost = _removal_costs(state, torch.stack((index, index + left), dim=-1))
    ranked = cost.sum(0, keepdim=True).expand_as(cost) if shared else cost
    cheapest = ranked.argmin(-1, keepdim=True)
    remaining = index.expand_as(state.alive)[index != cheapest].view(-1, left - 1)
    return _Removal(
        state=_without(state, cheapest, remaining),
        cost=cost.gather(-1, cheapest).squeeze(-1),
        pair=state.alive.gather(-1, cheapest).squeeze(-1),
    )


def _removal_costs(state: _Elimination, features: Tensor) -> Tensor:
    """Return the cost of removing each pair, (heads, n).

    Args:
        state: before the removal.
        features: positions of each pair's real and imaginary feature, (n, 2).
    """
    blocks = state.inverse[:, features[:, :, None], features[:, None, :]]
    parts = state.coefficients[:, features]
    costs: Tensor = (parts * linalg.solve(blocks, parts)).sum(-1)
    return costs


def _without(state: _Elimination, removed: Tensor, remaining: Tensor) -> _Elimination:
    """Return the state after a removal, the remaining features compensating for the removed ones.

    Args:
        state: before the removal.
        removed: position of the pair, (heads, 1).
        remaining: positions of the others, (heads, n - 1).
    """
    left = state.alive.shape[-1]
    out, others = (torch.cat((index, index + left), dim=-1) for index in (removed, remaining))
    rows = _rows(state.inverse, others)
    columns = rows.gather(-1, out[:, None, :].expand(-1, rows.shape[1], -1))
    block = _rows(state.inverse, out).gather(-1, out[:, None, :].expand(-1, 2, -1))
    compensation = linalg.solve(block, columns, left=False)
    coefficients = state.coefficients.gather(-1, out)
    inverse = rows.gather(-1, others[:, None, :].expand(-1, rows.shape[1], -1))
    return _Elimination(
        alive=state.alive.gather(-1, remaining),
        coefficients=state.coefficients.gather(-1, others)
        - (compensation @ coefficients.unsqueeze(-1)).squeeze(-1),
        inverse=inverse - compensation @ columns.mT,
    )


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Return rows of every head's matrix: (heads, m, n) from (heads, n, n) and (heads, m)."""
    return matrix.gather(1, index[:, :, None].expand(-1, -1, matrix.shape[-1]))


def turned_queries(rows: Tensor, turns: Tensor) -> Tensor:
    """Return query rows with every kept pair multiplied by its factor (the query turn).

    Args:
        rows: of q_proj (or its bias), (num_attention_heads · 2·keep, …), half-split per head.
        turns: (num_key_value_heads, keep, 2), real and imaginary parts.

    Returns:
        Shape and dtype of `rows`.
    """
    groups, keep, _ = turns.shape
    heads = rows.view(groups, -1, 2, keep, *rows.shape[1:]).to(turns.dtype)
    shape = (groups, 1, keep, *[1] * (rows.dim() - 1))
    real, imaginary = (part.reshape(shape) for part in turns.unbind(-1))
    first, second = heads.unbind(2)
    turned = (real * first - imaginary * second, real * second + imaginary * first)
    return torch.stack(turned, dim=2).view_as(rows).to(rows.dtype)
