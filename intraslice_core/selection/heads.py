"""Selection of attention heads (docs/method.md, section 3d): KV groups, then query heads in each.

A head is a block of `head_dim` inputs of the output projection. Heads are eliminated like neurons
(`selection.neurons`): the head whose removal costs least after compensation by the others goes
first. A layer stays rectangular, so KV groups are removed whole and every remaining group keeps
equally many query heads. Such a choice is called a rectangle (groups, query heads in each).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.linalg import Factor


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """Removal order of the heads and the cost of every rectangle."""

    group_order: Tensor
    """KV groups, first removed first, (num_key_value_heads,), int64."""
    query_order: Tensor
    """Query heads of each group, numbered within it, first removed first,
    (num_key_value_heads, group_size), int64."""
    cost: Tensor
    """Squared output error by groups kept and query heads kept in each of them,
    (num_key_value_heads + 1, group_size + 1), float64; infinite where no head remains."""

    def shares(self, energies: Tensor) -> Tensor:
        """Return the share of the heads' energy that each rectangle keeps; shape as `cost`.

        Shares are 1 where there is no energy.

        Args:
            energies: from `head_energies`, (num_attention_heads,).
        """
        by_group = energies.view(self.query_order.shape)
        shares = torch.zeros_like(self.cost)
        for groups, queries in _rectangles(self.cost):
            kept_groups, kept_queries = kept_heads(
                self.group_order, self.query_order, groups, queries
            )
            shares[groups, queries] = by_group[kept_groups].gather(1, kept_queries).sum()
        total = shares[-1, -1].clone()
        return shares / total if total > 0 else torch.ones_like(shares)


def kept_heads(
    group_order: Tensor, query_order: Tensor, groups: int, queries: int
) -> tuple[Tensor, Tensor]:
    """Return the heads that a rectangle keeps.

    Args:
        group_order: of `HeadChoice`.
        query_order: of `HeadChoice`.
        groups: KV groups to keep.
        queries: query heads to keep in each of them.

    Returns:
        KV groups, (groups,), and query heads numbered within them, (groups, queries), ascending.
    """
    kept_groups = group_order[group_order.shape[0] - groups :].sort().values
    order = query_order[kept_groups]
    return kept_groups, order[:, order.shape[1] - queries :].sort(dim=-1).values


def _rectangles(cost: Tensor) -> list[tuple[int, int]]:
    """Return all rectangles (groups, query heads in each) with at least one head."""
    groups, size = cost.shape
    return [(group, query) for group in range(1, groups) for query in range(1, size)]


def head_energies(moment: Tensor, output: Tensor, num_attention_heads: int) -> Tensor:
    """Return each head's output energy `tr(W_hᵀ E[o_h o_hᵀ] W_h)`, (num_attention_heads,).

    Args:
        moment: `E[o oᵀ]`, (num_attention_heads · head_dim, same).
        output: output projection by rows of heads, (num_attention_heads · head_dim, m).
        num_attention_heads: query heads.
    """
    rows = output.view(num_attention_heads, -1, output.shape[-1])
    width = rows.shape[1]
    blocks = moment.view(num_attention_heads, width, num_attention_heads, width)
    own = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return (rows * (own @ rows)).sum((1, 2))


@dataclass(frozen=True, kw_only=True)
class _Elimination:
    """State of an elimination: rows belong to the remaining heads, in the order of `heads`."""

    heads: tuple[int, ...]
    weight: Tensor
    inverse: Tensor
    cost: float

    def rows(self, heads: list[int]) -> Tensor:
        """Return the row numbers of heads, (heads · head_dim,)."""
        width = self.weight.shape[0] // len(self.heads)
        starts = torch.tensor([self.heads.index(head) * width for head in heads])
        rows = starts.unsqueeze(-1) + torch.arange(width)
        return rows.flatten().to(self.weight.device)

    def removal_cost(self, removed: list[int]) -> float:
        """Return the cost of removing these heads together."""
        rows = self.rows(removed)
        weight = self.weight[rows]
        return float((weight * linalg.solve(self.inverse[rows][:, rows], weight)).sum())

    def without(self, removed: list[int]) -> _Elimination:
        """Return the state after these heads were removed and the others compensate for them."""
        out = self.rows(removed)
        remaining = self.rows([head for head in self.heads if head not in removed])
        columns = self.inverse[remaining][:, out]
        compensation = linalg.solve(self.inverse[out][:, out], columns, left=False)
        return _Elimination(
            heads=tuple(head for head in self.heads if head not in removed),
            weight=self.weight[remaining] - compensation @ self.weight[out],
            inverse=self.inverse[remaining][:, remaining] - compensation @ columns.mT,
            cost=self.cost + self.removal_cost(removed),
        )

    def cheapest(self, candidates: list[list[int]]) -> int:
        """Return the index of the candidate that costs least."""
        costs = [self.removal_cost(heads) for heads in candidates]
        return costs.index(min(costs))


def eliminate_heads(
    factor: Factor, output: Tensor, num_attention_heads: int, num_key_value_heads: int
) -> HeadChoice:
    """Compute the removal order of heads and the cost of every rectangle.

    KV groups are removed one at a time. From each number of groups, one query head of every
    remaining group is removed at a time, in an order determined once with all groups in place.

    Args:
        factor: damped Cholesky factor of `E[o oᵀ]`, (num_attention_heads · head_dim, same).
        output: output projection by rows of heads, (num_attention_heads · head_dim, m).
        num_attention_heads: query heads.
        num_key_value_heads: KV groups; the query heads of a group are consecutive.

    Raises:
        NumericalError: if the inverse is not finite.
    """
    inverse = factor.inverse()
    size = num_attention_heads // num_key_value_heads
    state = _Elimination(
        heads=tuple(range(num_attention_heads)),
        weight=output.to(inverse),
        inverse=inverse,
        cost=0.0,
    )
    groups = [list(range(group * size, (group + 1) * size)) for group in range(num_key_value_heads)]
    query_order = _query_order(state, groups)
    group_order, cost = _group_order(state, groups, query_order)
    within = [
        [head - heads[0] for head in order]
        for heads, order in zip(groups, query_order, strict=True)
    ]
    return HeadChoice(
        group_order=torch.tensor(group_order, device=output.device),
        query_order=torch.tensor(within, device=output.device),
        cost=cost.to(output.device),
    )


def _query_order(state: _Elimination, groups: list[list[int]]) -> list[list[int]]:
    """Return each group's query heads in removal order, one head of every group in turn."""
    remaining = [list(group) for group in groups]
    order: list[list[int]] = [[] for _ in groups]
    for _ in range(len(groups[0]) - 1):
        for group, heads in enumerate(remaining):
            removed = heads.pop(state.cheapest([[head] for head in heads]))
            order[group].append(removed)
            state = state.without([removed])
    return [removed + heads for removed, heads in zip(order, remaining, strict=True)]


def _group_order(
    state: _Elimination, groups: list[list[int]], query_order: list[list[int]]
) -> tuple[list[int], Tensor]:
    """Return the KV groups in removal order and the cost of every rectangle, float64."""
    cost = torch.full((len(groups) + 1, len(groups[0]) + 1), torch.inf, dtype=torch.float64)
    remaining = list(range(len(groups)))
    order: list[int] = []
    while True:
        cost[len(remaining), 1:] = _query_costs(state, remaining, groups, query_order)
        if len(remaining) == 1:
            return order + remaining, cost
        removed = remaining.pop(state.cheapest([groups[group] for group in remaining]))
        order.append(removed)
        state = state.without(groups[removed])


def _query_costs(
    state: _Elimination, kept: list[int], groups: list[list[int]], order: list[list[int]]
) -> Tensor:
    """Return the cost by query heads that every kept group keeps, 1 to all, (group_size,)."""
    costs = [state.cost]
    for turn in range(len(groups[0]) - 1):
        state = state.without([order[group][turn] for group in kept])
        costs.append(state.cost)
    return torch.tensor(costs[::-1], dtype=torch.float64)
