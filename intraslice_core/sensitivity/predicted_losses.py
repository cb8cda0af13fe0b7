"""Predicted losses of removals, in units of loss, from their costs."""

from __future__ import annotations

import torch
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.selection.rotary_pairs import eliminate_pairs
from intraslice_core.selection.score_basis import ScoreDirections


def removal_loss(moment: Tensor, rows: Tensor) -> float:
    """Return the predicted loss of removing a whole module, its bias included.

    Args:
        moment: of the inner activations, (width, width).
        rows: output projection in units of loss, (width, hidden_size).
    """
    return 0.5 * float((rows * linalg.product(moment, rows)).sum())


def losses_by_size(cost: Tensor) -> Tensor:
    """Return losses by the number kept, (n + 1,), from removal costs in order, (n,)."""
    removed = torch.cat((cost.new_zeros(1), cost.cumsum(0)))
    return 0.5 * removed.flip(0)


def pair_losses(moment: Tensor) -> Tensor:
    """Return losses by the number of pairs kept; each KV head loses its own cheapest pairs.

    The last pair costs its own energy, since nothing can compensate for it.
    """
    cost = eliminate_pairs(moment, 1).removal_cost.sum(0)
    last = moment.diagonal(dim1=-2, dim2=-1).sum()
    return losses_by_size(torch.cat((cost, last.unsqueeze(0).to(cost))))


def score_losses(directions: ScoreDirections) -> Tensor:
    """Return losses by the number of pairs of directions kept in every KV head, (pairs + 1,)."""
    return losses_by_size(directions.spectrum.sum(0).flip(-1))[::2]
