"""Which heads stay (docs/method.md, section 3d): whole KV groups, then queries of every kept group.

Heads are blocks of `head_dim` inputs of the output projection, and go as neurons do
(`selection.neurons`): the block whose loss the others mend best goes first, and they take over its
part. A layer stays rectangular, so KV groups go whole, and of every group that is kept equally many
query heads go.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core.linalg import Factor


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """In which order heads go, and what every rectangle of them costs."""

    group_order: Tensor
    """KV groups, those that go first first, (num_key_value_heads,)."""
    query_order: Tensor
    """Each group's query heads, counted within the group, (num_key_value_heads, group_size)."""
    cost: Tensor
    """In squared output error, by groups kept and query heads kept in each of them,
    (num_key_value_heads + 1, group_size + 1), float64; infinite where nothing would be left."""

    def shares(self, energies: Tensor) -> Tensor:
        """Share of the heads' energies that is kept, as `cost`; 1 where there is none.

        Args:
            energies: of `head_energies`, (num_attention_heads,).
        """
        each = energies.view(self.query_order.shape)
        shares = torch.zeros_like(self.cost)
        for groups, queries in _rectangles(self.cost):
            stay, within = kept_heads(self.group_order, self.query_order, groups, queries)
            shares[groups, queries] = each[stay].gather(1, within).sum()
        total = shares[-1, -1].clone()
        return shares / total if total > 0 else torch.ones_like(shares)


def kept_heads(
    group_order: Tensor, query_order: Tensor, groups: int, queries: int
) -> tuple[Tensor, Tensor]:
    """What a rectangle of heads keeps.

    Args:
        group_order: of `HeadChoice`.
        query_order: of `HeadChoice`.
        groups: KV groups that stay.
        queries: query heads that stay in each of them.

    Returns:
        KV groups, (groups,), and query heads counted within them, (groups, queries), ascending.
    """
    stay = group_order[group_order.shape[0] - groups :].sort().values
    order = query_order[stay]
    return stay, order[:, order.shape[1] - queries :].sort(dim=-1).values


def _rectangles(cost: Tensor) -> list[tuple[int, int]]:
    """Numbers of groups and of query heads in each that leave something."""
    groups, size = cost.shape
    return [(one, other) for one in range(1, groups) for other in range(1, size)]


def head_energies(moment: Tensor, output: Tensor, num_attention_heads: int) -> Tensor:
    """`tr(W_hᵀ E[o_h o_hᵀ] W_h)`: the output energy that each head explains, (heads,).

    Args:
        moment: `E[o oᵀ]`, (heads · head_dim, same).
        output: output projection by rows of heads, (heads · head_dim, m).
        num_attention_heads: query heads.
    """
    rows = output.view(num_attention_heads, -1, output.shape[-1])
    width = rows.shape[1]
    blocks = moment.view(num_attention_heads, width, num_attention_heads, width)
    own = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return (rows * (own @ rows)).sum((1, 2))


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """What is left in the middle of an elimination; rows are those of the heads left."""

    heads: tuple[int, ...]
    weight: Tensor
    inverse: Tensor
    cost: float

    def rows(self, gone: list[int]) -> Tensor:
        """Row numbers of heads, (heads · head_dim,)."""
        width = self.weight.shape[0] // len(self.heads)
        starts = torch.tensor([self.heads.index(head) * width for head in gone])
        rows = starts.unsqueeze(-1) + torch.arange(width)
        return rows.flatten().to(self.weight.device)

    def price(self, gone: list[int]) -> float:
        """What removing these heads together costs."""
        rows = self.rows(gone)
        lost = self.weight[rows]
        return float((lost * torch.linalg.solve(self.inverse[rows][:, rows], lost)).sum())

    def without(self, gone: list[int]) -> _Standing:
        """The others, which have taken over what they can."""
        out = self.rows(gone)
        stay = self.rows([head for head in self.heads if head not in gone])
        columns = self.inverse[stay][:, out]
        take_over = torch.linalg.solve(self.inverse[out][:, out], columns, left=False)
        return _Standing(
            heads=tuple(head for head in self.heads if head not in gone),
            weight=self.weight[stay] - take_over @ self.weight[out],
            inverse=self.inverse[stay][:, stay] - take_over @ columns.mT,
            cost=self.cost + self.price(gone),
        )

    def cheapest(self, candidates: list[list[int]]) -> int:
        """Number of the candidate that costs least."""
        prices = [self.price(heads) for heads in candidates]
        return prices.index(min(prices))


def eliminate_heads(
    factor: Factor, output: Tensor, num_attention_heads: int, num_key_value_heads: int
) -> HeadChoice:
    """Price every number of KV groups with every number of query heads in each.

    Groups go one by one; then, from any number of groups kept, one query head of each of them at a
    time, in an order that is found once, with all groups in place.

    Args:
        factor: damped Cholesky factor of `E[o oᵀ]`, (num_attention_heads · head_dim, same).
        output: output projection by rows of heads, (num_attention_heads · head_dim, m).
        num_attention_heads: query heads.
        num_key_value_heads: KV groups, of equally many query heads that follow each other.
    """
    inverse = factor.inverse()
    size = num_attention_heads // num_key_value_heads
    everything = _Standing(
        heads=tuple(range(num_attention_heads)),
        weight=output.to(inverse),
        inverse=inverse,
        cost=0.0,
    )
    groups = [list(range(one * size, (one + 1) * size)) for one in range(num_key_value_heads)]
    query_order = _order_of_queries(everything, groups)
    cost = output.new_full((len(groups) + 1, size + 1), torch.inf, dtype=torch.float64)
    standing, left, group_order = everything, list(range(len(groups))), []
    while True:
        cost[len(left), 1:] = _costs_of_queries(standing, left, groups, query_order)
        if len(left) == 1:
            break
        gone = left.pop(standing.cheapest([groups[one] for one in left]))
        group_order.append(gone)
        standing = standing.without(groups[gone])
    within = [
        [head - one[0] for head in order] for one, order in zip(groups, query_order, strict=True)
    ]
    return HeadChoice(
        group_order=torch.tensor(group_order + left, device=output.device),
        query_order=torch.tensor(within, device=output.device),
        cost=cost,
    )


def _order_of_queries(standing: _Standing, groups: list[list[int]]) -> list[list[int]]:
    """Query heads of each group in the order in which they go, a head of every group in turn."""
    left = [list(group) for group in groups]
    order: list[list[int]] = [[] for _ in groups]
    for _ in range(len(groups[0]) - 1):
        for number, heads in enumerate(left):
            gone = heads.pop(standing.cheapest([[head] for head in heads]))
            order[number].append(gone)
            standing = standing.without([gone])
    return [gone + heads for gone, heads in zip(order, left, strict=True)]


def _costs_of_queries(
    standing: _Standing, kept: list[int], groups: list[list[int]], order: list[list[int]]
) -> Tensor:
    """By the query heads that every kept group keeps, from one to all, (group_size,)."""
    costs = [standing.cost]
    for turn in range(len(groups[0]) - 1):
        standing = standing.without([order[group][turn] for group in kept])
        costs.append(standing.cost)
    return torch.tensor(costs[::-1], dtype=torch.float64)
