"""Elimination of value dimensions as they are, without a new basis (docs/methods.md, `spp`).

Dimension j of a KV group's values is read through the inputs j of all its query heads, a block of
the output projection's inputs. Blocks are eliminated like neurons (`selection.neurons`): the block
whose removal costs least after compensation by the others goes first. A layer stays rectangular,
so that every step removes one dimension from each KV group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.linalg import Factor


@dataclass(frozen=True, kw_only=True)
class ValueDimChoice:
    """Removal order of the value dimensions of every KV group, and the cost of every step."""

    order: Tensor
    """Dimensions, first removed first, (num_key_value_heads, head_dim), int64."""
    cost: Tensor
    """Increase of the squared output error in each step, of all groups together, (head_dim,),
    float64."""


def eliminate_value_dims(
    factor: Factor, output: Tensor, num_attention_heads: int, num_key_value_heads: int
) -> ValueDimChoice:
    """Remove value dimensions by Optimal Brain Surgeon (OBS), one of every KV group in a step.

    The cost of a block B is `tr(W_Bᵀ ((H⁻¹)_BB)⁻¹ W_B)`. After each step `W` and `H⁻¹` are those of
    the others, which compensate for the removed ones (Schur complement).

    Args:
        factor: damped Cholesky factor of `H = E[o oᵀ]`, (num_attention_heads · head_dim, same).
        output: output projection `W` by rows of inputs, (num_attention_heads · head_dim, m); its
            squared lengths are the error that costs predict.
        num_attention_heads: query heads.
        num_key_value_heads: KV groups; the query heads of a group are consecutive.

    Raises:
        NumericalError: if the inverse is not finite.
    """
    inverse = factor.inverse()
    weight = output.to(inverse, copy=True)
    groups, head_dim = num_key_value_heads, len(weight) // num_attention_heads
    inputs = torch.arange(len(weight), device=weight.device)
    blocks = inputs.view(groups, -1, head_dim).mT  # inputs by group, dimension and query head
    alive = torch.arange(head_dim, device=weight.device).expand(groups, head_dim)
    order, cost = [], []
    for left in range(head_dim, 0, -1):
        cheapest = _block_costs(weight, inverse, blocks).argmin(1, keepdim=True)
        order.append(alive.gather(1, cheapest))
        removed = _taken(blocks, cheapest).flatten()
        cost.append(_remove(weight, inverse, removed))
        positions = torch.arange(left, device=weight.device).expand(groups, left)
        remaining = positions[positions != cheapest].view(groups, left - 1)
        alive, blocks = alive.gather(1, remaining), _taken(blocks, remaining)
    return ValueDimChoice(order=torch.cat(order, 1), cost=torch.stack(cost))


def _taken(blocks: Tensor, dimensions: Tensor) -> Tensor:
    """Return the blocks of some dimensions of each group, (groups, n, query heads)."""
    return blocks.gather(1, dimensions.unsqueeze(-1).expand(-1, -1, blocks.shape[-1]))


def _block_costs(weight: Tensor, inverse: Tensor, blocks: Tensor) -> Tensor:
    """Return the cost of removing each block alone, (groups, dimensions)."""
    rows = weight[blocks]
    own = inverse[blocks.unsqueeze(-1), blocks.unsqueeze(-2)]
    solved = linalg.solve(own, rows @ rows.mT)
    return solved.diagonal(dim1=-2, dim2=-1).sum(-1)


def _remove(weight: Tensor, inverse: Tensor, removed: Tensor) -> Tensor:
    """Update `W` and `H⁻¹` in place for the removal of inputs; return its cost, a scalar."""
    columns, rows = inverse[:, removed], weight[removed]
    own = columns[removed]
    cost: Tensor = (rows * linalg.solve(own, rows)).sum()
    compensation = linalg.solve(own, columns, left=False)
    weight.addmm_(compensation, rows, alpha=-1.0)
    inverse.addmm_(compensation, columns.mT, alpha=-1.0)
    return cost
