"""Which MLP neurons stay (section 3a of docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intraslice_core.linalg import Factor

OBS_CHUNK_DIVISOR = 48
"""Removed between two updates: one neuron of so many. That is 32 of 1536, which docs/method.md
measured to be as good as 1; a fixed 32 would be a third of a small MLP in one blind step."""


@dataclass(frozen=True, kw_only=True)
class NeuronChoice:
    """Neurons kept, and what the removed ones cost."""

    kept: Tensor
    """Indices, ascending, (keep,)."""
    removal_order: Tensor
    """Removed indices, cheapest first, (width - keep,)."""
    removal_cost: Tensor
    """Cost of each removal at its time, in squared output error, (width - keep,), float64."""
    score: Tensor
    """What each neuron was worth while all were there, (width,)."""


def energy_score(gram: Tensor, output: Tensor) -> Tensor:
    """The paper's: `H_jj · ‖Wd[j, :]‖²`, (width,). `output` is (width, hidden_size)."""
    return gram.diagonal() * output.to(gram).square().sum(-1)


def magnitude_score(gate: Tensor | None, up: Tensor, output: Tensor) -> Tensor:
    """The naive baseline: product of a neuron's weight norms, (width,).

    `gate`, None in a plain MLP, and `up` are (width, hidden_size), as is `output`.
    """
    matrices = (up, output) if gate is None else (gate, up, output)
    norms = [matrix.double().square().sum(-1) for matrix in matrices]
    return torch.stack(norms).prod(0)


def keep_best_neurons(score: Tensor, keep: int) -> NeuronChoice:
    """Keep the `keep` neurons of highest score."""
    order = score.argsort(stable=True)
    removed = order[: score.shape[0] - keep]
    return NeuronChoice(
        kept=order[score.shape[0] - keep :].sort().values,
        removal_order=removed,
        removal_cost=score[removed],
        score=score,
    )


def obs_elimination(factor: Factor, output: Tensor, keep: int) -> NeuronChoice:
    """Ours: Optimal-Brain-Surgeon elimination.

    Repeatedly removes the neurons of smallest `‖W[j, :]‖² / (H⁻¹)_jj`, a chunk at a time, and
    lets the others take over their part by the Schur complement.

    Args:
        factor: damped Cholesky factor of `E[u uᵀ]`, (width, width).
        output: down projection fitted to the target, (width, hidden_size).
        keep: neurons to keep.
    """
    inverse = factor.inverse()
    chunk = max(output.shape[0] // OBS_CHUNK_DIVISOR, 1)
    weight = output.to(inverse, copy=True)
    alive = torch.arange(weight.shape[0], device=weight.device)
    score = weight.square().sum(-1) / inverse.diagonal()
    order, cost = [], []
    while (surplus := alive.shape[0] - keep) > 0:
        saliency = weight.square().sum(-1) / inverse.diagonal()
        ranked = saliency.argsort(stable=True)
        step = min(chunk, surplus)
        gone, stay = ranked[:step], ranked[step:].sort().values
        order.append(alive[gone])
        cost.append(saliency[gone])
        columns = inverse[stay][:, gone]
        take_over = torch.linalg.solve(inverse[gone][:, gone], columns, left=False)
        weight = weight[stay] - take_over @ weight[gone]
        inverse = inverse[stay][:, stay] - take_over @ columns.mT
        alive = alive[stay]
    empty = alive.new_empty(0)
    return NeuronChoice(
        kept=alive,
        removal_order=torch.cat(order) if order else empty,
        removal_cost=torch.cat(cost) if cost else inverse.new_empty(0),
        score=score,
    )
