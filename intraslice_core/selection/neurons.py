"""Selection of MLP neurons (docs/method.md, section 3a)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core import blocked, linalg
from intraslice_core.linalg import WORKING_DTYPE, Factor

OBS_CHUNK_DIVISOR = 48
"""Fraction of the neurons, 1 in this many, removed between two updates: 32 of 1,536.

On SmolLM2-135M that was as good as removing one at a time. A fixed 32 would remove a third of a
small MLP in a single step without updates.
"""

_REMOVED_SHARE = 1 / 8
"""Share of removed rows beyond which the matrices shrink: copies cost more than products."""


@dataclass(frozen=True, kw_only=True)
class NeuronChoice:
    """The neurons to keep and the cost of removing the others."""

    kept: Tensor
    """Indices, ascending, (keep,), int64."""
    removal_order: Tensor
    """Removed indices, first removed first, (width - keep,), int64."""
    removal_cost: Tensor
    """Increase of the squared output error at each removal, (width - keep,), float64."""
    score: Tensor
    """Score of each neuron before any removal, (width,)."""


def energy_score(gram: Tensor, output: Tensor) -> Tensor:
    """Return the neurons' energy scores `H_jj · ‖Wd[j, :]‖²` of arXiv 2602.01975, (width,).

    Args:
        gram: `H = E[u uᵀ]`, (width, width).
        output: down projection by rows of neurons, (width, hidden_size).
    """
    return gram.diagonal() * output.to(gram).square().sum(-1)


def leverage_score(gram: Tensor, damping: float) -> Tensor:
    """Return the ridge leverage scores `diag(H (H + λI)⁻¹)` of arXiv 2408.09632, (width,), float64.

    A neuron scores near 1 if the others do not span it, less the better they do.

    Args:
        gram: `H = E[u uᵀ]`, (width, width).
        damping: λ relative to the mean of H's diagonal.

    Raises:
        NumericalError: if H is not finite or no rung of the ladder succeeds.
    """
    matrix = linalg.DampedMatrix(gram)
    factor = matrix.factor(damping)
    inverse = factor.rounded_inverse()
    if inverse is None:
        inverse = factor.inverse(overwrite=True)
    return 1.0 - factor.damping * matrix.scale * inverse.diagonal()


def magnitude_score(gate: Tensor | None, up: Tensor, output: Tensor) -> Tensor:
    """Return the product of each neuron's squared weight norms, (width,), float64.

    Args:
        gate: (width, hidden_size); None in a plain MLP.
        up: (width, hidden_size).
        output: down projection by rows of neurons, (width, hidden_size).
    """
    matrices = (up, output) if gate is None else (gate, up, output)
    norms = [matrix.double().square().sum(-1) for matrix in matrices]
    return torch.stack(norms).prod(0)


def keep_best_neurons(score: Tensor, keep: int) -> NeuronChoice:
    """Keep the `keep` neurons of highest score; `score` is (width,)."""
    order = score.argsort(stable=True)
    removed = order[: score.shape[0] - keep]
    return NeuronChoice(
        kept=order[score.shape[0] - keep :].sort().values,
        removal_order=removed,
        removal_cost=score[removed],
        score=score,
    )


def eliminate_neurons(factor: Factor, output: Tensor, keep: int) -> NeuronChoice:
    """Remove neurons by Optimal Brain Surgeon (OBS) until `keep` remain.

    Each step removes a chunk of the neurons of least saliency `‖W[j, :]‖² / (H⁻¹)_jj` and updates
    `W` and `H⁻¹` of the others, which compensate for the removed ones (Schur complement).

    Args:
        factor: damped Cholesky factor of `H = E[u uᵀ]`, (width, width). A factor in float32 is
            followed by an elimination in float32, and in float64 if that becomes imprecise. One
            that was made in place is overwritten.
        output: down projection `W` by rows of neurons, (width, m); its squared lengths are the
            error that saliencies predict.
        keep: neurons to keep, 0 or more.

    Raises:
        NumericalError: if the inverse is not finite.
    """
    rounded = factor.rounded_inverse()
    choice = None if rounded is None else _eliminate(rounded, output, keep, factor)
    del rounded  # before an inverse in float64 exists
    if choice is None:
        choice = _eliminate(factor.inverse(overwrite=True), output, keep, None, factor.is_in_place)
    assert choice is not None
    return choice


def _eliminate(
    inverse: Tensor,
    output: Tensor,
    keep: int,
    checked_by: Factor | None,
    in_place: bool = False,
) -> NeuronChoice | None:
    """Remove neurons until `keep` remain.

    Args:
        inverse: `H⁻¹`, (width, width), float64 or float32; overwritten.
        output: as in `eliminate_neurons`.
        keep: neurons to keep.
        checked_by: factor by which the inverse of the others is checked whenever it shrinks; None
            without check.
        in_place: let the inverse shrink in its own memory; it is contiguous then.

    Returns:
        The choice; None if the inverse became imprecise.
    """
    chunk = max(output.shape[0] // OBS_CHUNK_DIVISOR, 1)
    weight = output.to(inverse, copy=True)
    alive = torch.arange(weight.shape[0], device=weight.device)
    is_removed = torch.zeros_like(alive, dtype=torch.bool)
    score = weight.square().sum(-1) / inverse.diagonal()
    order, cost = [], []
    for surplus in range(len(alive) - keep, 0, -chunk):
        saliency = weight.square().sum(-1) / inverse.diagonal()
        saliency.masked_fill_(is_removed, torch.inf)
        removed = saliency.argsort(stable=True)[: min(chunk, surplus)]
        order.append(alive[removed])
        cost.append(saliency[removed])
        _compensate(weight, inverse, removed)
        is_removed[removed] = True
        if is_removed.sum() > _REMOVED_SHARE * len(alive) or surplus <= chunk:
            rows = (~is_removed).nonzero().flatten()
            weight = weight[rows]
            inverse = blocked.compacted(inverse, rows) if in_place else inverse[rows][:, rows]
            alive, is_removed = alive[rows], is_removed[rows]
            if checked_by is not None and len(alive) and not checked_by.inverts(inverse, alive):
                return None
    empty = alive.new_empty(0)
    return NeuronChoice(
        kept=alive,
        removal_order=torch.cat(order) if order else empty,
        removal_cost=(torch.cat(cost) if cost else inverse.new_empty(0)).to(WORKING_DTYPE),
        score=score.to(WORKING_DTYPE),
    )


def _compensate(weight: Tensor, inverse: Tensor, removed: Tensor) -> None:
    """Update `W` and `H⁻¹` in place so that the other neurons compensate for the removed ones."""
    columns = inverse[:, removed]
    compensation = linalg.solve(columns[removed], columns, left=False)
    weight.addmm_(compensation, weight[removed], alpha=-1.0)
    inverse.addmm_(compensation, columns.mT, alpha=-1.0)
