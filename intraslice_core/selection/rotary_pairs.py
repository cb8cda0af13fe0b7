"""Which rotary pairs of each KV head stay (section 3c of docs/method.md).

Only whole pairs (j, j + e/2) commute with RoPE, so the choice is a subset of pairs per KV head.
Scores are (num_key_value_heads, pairs); larger stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.statistics import RotaryStatistics


def centered_score(statistics: RotaryStatistics) -> Tensor:
    """Ours: energy of the logits that a pair contributes, less what is constant over keys."""
    return statistics.query_energy * statistics.centered_key_energy


def paper_score(statistics: RotaryStatistics) -> Tensor:
    """The paper's: mean absolute elementwise product of rotated queries and keys."""
    return statistics.product


def magnitude_score(query: Tensor, key: Tensor, num_key_value_heads: int) -> Tensor:
    """The naive baseline: squared weight norms of a pair's rows.

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
    """Indices of the `keep` best pairs of each KV head, ascending: (num_key_value_heads, keep)."""
    return score.topk(keep, dim=-1).indices.sort(dim=-1).values


PAIR_DAMPING = 1e-3
"""Of the features' Gram matrix: a few sequences fill it, and first order is not the truth."""


@dataclass(frozen=True, kw_only=True)
class PairChoice:
    """Pairs kept, how the queries make up for the others, and what each removal cost."""

    kept: Tensor
    """(num_key_value_heads, keep), ascending."""
    turns: Tensor
    """Real and imaginary part of each kept pair's factor, (num_key_value_heads, keep, 2)."""
    removal_cost: Tensor
    """At its time, cheapest first, (num_key_value_heads, pairs - keep), in squared output error."""


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """What is left in the middle of an elimination, of every KV head."""

    alive: Tensor
    """(heads, n)."""
    coefficients: Tensor
    """(heads, 2n)."""
    inverse: Tensor
    """Of the features' Gram matrix, (heads, 2n, 2n)."""


def eliminate_pairs(moment: Tensor, keep: int) -> PairChoice:
    """Remove pairs until `keep` are left, each time the one whose loss the others mend best.

    All KV heads are worked on at once; there are as many steps as pairs removed.

    Args:
        moment: Gram matrix of the features, (num_key_value_heads, 2·pairs, 2·pairs).
        keep: pairs that stay, at least 1.

    Raises:
        NumericalError: if the matrix is not finite or cannot be factorised.
    """
    heads, pairs = moment.shape[0], moment.shape[-1] // 2
    standing = _whole(moment)
    costs = []
    for _ in range(pairs - keep):
        standing, cost, _ = _without_the_cheapest(standing)
        costs.append(cost)
    return PairChoice(
        kept=standing.alive,
        turns=torch.unflatten(standing.coefficients, -1, (2, keep)).mT,
        removal_cost=torch.stack(costs, dim=-1) if costs else moment.new_empty(heads, 0),
    )


@dataclass(frozen=True, kw_only=True)
class CommonOrder:
    """In which order all heads lose the same pairs."""

    order: Tensor
    """All pairs, those that go first first, (pairs,)."""
    removal_cost: Tensor
    """What each head's loss of each costs at its time, (num_key_value_heads, pairs - 1)."""


def eliminate_alike(moment: Tensor) -> CommonOrder:
    """Remove one pair after the other from all heads at once: the one that costs least in all.

    Args:
        moment: as in `eliminate_pairs`, the heads of all layers one behind the other.

    Raises:
        NumericalError: if the matrix is not finite or cannot be factorised.
    """
    standing = _whole(moment)
    gone, costs = [], []
    for _ in range(moment.shape[-1] // 2 - 1):
        standing, cost, removed = _without_the_cheapest(standing, alike=True)
        costs.append(cost)
        gone.append(removed[0])
    return CommonOrder(
        order=torch.stack([*gone, standing.alive[0, 0]]),
        removal_cost=torch.stack(costs, dim=-1) if costs else moment.new_empty(len(moment), 0),
    )


def keep_these_pairs(moment: Tensor, kept: Tensor) -> PairChoice:
    """The same pairs in every KV head, and how the queries make up for the others.

    Args:
        moment: as in `eliminate_pairs`.
        kept: (keep,), ascending.

    Raises:
        NumericalError: if the matrix is not finite or cannot be factorised.
    """
    heads, pairs = moment.shape[0], moment.shape[-1] // 2
    lower = linalg.damped_cholesky(moment, PAIR_DAMPING).cholesky
    gram = lower @ lower.mT
    both = torch.cat((kept, kept + pairs))
    target = gram[:, both, :pairs].sum(-1, keepdim=True)
    coefficients = torch.linalg.solve(gram[:, both][:, :, both], target).squeeze(-1)
    return PairChoice(
        kept=kept.expand(heads, -1),
        turns=torch.unflatten(coefficients, -1, (2, len(kept))).mT,
        removal_cost=moment.new_empty(heads, 0),
    )


def _whole(moment: Tensor) -> _Standing:
    """Before anything is removed."""
    heads, pairs = moment.shape[0], moment.shape[-1] // 2
    inverse = linalg.damped_cholesky(moment, PAIR_DAMPING).inverse()
    ones = inverse.new_ones(heads, pairs)
    return _Standing(
        alive=torch.arange(pairs, device=moment.device).expand(heads, pairs),
        coefficients=torch.cat((ones, torch.zeros_like(ones)), dim=-1),
        inverse=inverse,
    )


def _without_the_cheapest(
    standing: _Standing, *, alike: bool = False
) -> tuple[_Standing, Tensor, Tensor]:
    """One removal from every head, its cost and its pair, (heads,) each; `alike`: one pair."""
    inverse, left = standing.inverse, standing.alive.shape[-1]
    each = torch.arange(left, device=inverse.device)
    both = torch.stack((each, each + left), dim=-1)
    blocks = inverse[:, both[:, :, None], both[:, None, :]]
    parts = standing.coefficients[:, both]
    cost = (parts * torch.linalg.solve(blocks, parts)).sum(-1)
    judged = cost.sum(0, keepdim=True).expand_as(cost) if alike else cost
    cheapest = judged.argmin(-1, keepdim=True)
    stay = each.expand_as(standing.alive)[each != cheapest].view(-1, left - 1)
    gone, kept = (torch.cat((index, index + left), dim=-1) for index in (cheapest, stay))
    rows = _taken(inverse, kept)
    columns = rows.gather(-1, gone[:, None, :].expand(-1, rows.shape[1], -1))
    among = _taken(inverse, gone).gather(-1, gone[:, None, :].expand(-1, 2, -1))
    take_over = torch.linalg.solve(among, columns, left=False)
    lost = standing.coefficients.gather(-1, gone)
    remaining = rows.gather(-1, kept[:, None, :].expand(-1, rows.shape[1], -1))
    removed = standing.alive.gather(-1, cheapest).squeeze(-1)
    left_over = _Standing(
        alive=standing.alive.gather(-1, stay),
        coefficients=standing.coefficients.gather(-1, kept)
        - (take_over @ lost.unsqueeze(-1)).squeeze(-1),
        inverse=remaining - take_over @ columns.mT,
    )
    return left_over, cost.gather(-1, cheapest).squeeze(-1), removed


def _taken(matrix: Tensor, rows: Tensor) -> Tensor:
    """Rows of every head's matrix: (heads, m, n) of (heads, n, n)."""
    return matrix.gather(1, rows[:, :, None].expand(-1, -1, matrix.shape[-1]))


def turned_queries(rows: Tensor, turns: Tensor) -> Tensor:
    """Query rows whose pairs are scaled and turned, so that the kept make up for the removed.

    Args:
        rows: of q_proj (or its bias), (num_attention_heads · 2·keep, …), half-split per head.
        turns: (num_key_value_heads, keep, 2).
    """
    groups, keep, _ = turns.shape
    heads = rows.view(groups, -1, 2, keep, *rows.shape[1:]).to(turns.dtype)
    shape = (groups, 1, keep, *[1] * (rows.dim() - 1))
    real, imaginary = (part.reshape(shape) for part in turns.unbind(-1))
    first, second = heads.unbind(2)
    turned = (real * first - imaginary * second, real * second + imaginary * first)
    return torch.stack(turned, dim=2).view_as(rows).to(rows.dtype)
