"""Selection of neurons compared with brute force."""

from __future__ import annotations

import torch

from intraslice_core import linalg
from intraslice_core.selection import neurons


def problem(width: int, hidden: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(400, width, generator=generator, dtype=torch.float64)
    mixed = samples @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    output = torch.randn(width, hidden, generator=generator, dtype=torch.float64)
    return mixed.mT @ mixed / 400, output


def least_squares_error(gram: torch.Tensor, output: torch.Tensor, kept: torch.Tensor) -> float:
    """Return `min_W E‖Woutᵀu - Wᵀu_S‖²`, by the Schur complement of the removed neurons."""
    removed = torch.tensor([j for j in range(gram.shape[0]) if j not in set(kept.tolist())])
    cross = gram[kept][:, removed]
    schur = gram[removed][:, removed] - cross.mT @ torch.linalg.solve(gram[kept][:, kept], cross)
    return float((output[removed].mT @ schur @ output[removed]).trace())


def test_first_obs_removal_is_the_neuron_of_least_error() -> None:
    gram, output = problem(10, 4)
    choice = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-12), output, keep=9)
    errors = [
        least_squares_error(gram, output, torch.tensor([i for i in range(10) if i != j]))
        for j in range(10)
    ]
    assert choice.removal_order.tolist() == [min(range(10), key=errors.__getitem__)]
    assert abs(choice.removal_cost.item() - min(errors)) < 1e-6 * min(errors)


def test_obs_loses_less_than_the_energy_score_on_correlated_neurons() -> None:
    for seed in range(5):
        gram, output = problem(40, 6, seed)
        obs = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-10), output, keep=24)
        energy = neurons.keep_best_neurons(neurons.energy_score(gram, output), 24)
        assert least_squares_error(gram, output, obs.kept) < least_squares_error(
            gram, output, energy.kept
        )


def test_obs_drops_duplicates_first() -> None:
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    doubled = torch.cat((samples, samples[:, :2]), dim=1)
    output = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    gram = doubled.mT @ doubled / 500
    choice = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-9), output, keep=7)
    assert choice.removal_order[0].item() in {0, 1, 6, 7}


def test_energy_score_is_diagonal_times_squared_row_norm() -> None:
    gram, output = problem(5, 3)
    score = neurons.energy_score(gram, output)
    assert torch.allclose(score[2], gram[2, 2] * (output[2] ** 2).sum())


def test_kept_and_removed_are_a_partition() -> None:
    gram, output = problem(70, 4)
    choice = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-4), output, keep=30)
    together = torch.cat((choice.kept, choice.removal_order)).sort().values
    assert torch.equal(together, torch.arange(70))
    assert (choice.kept.diff() > 0).all()


def test_keeping_everything_removes_nothing() -> None:
    gram, output = problem(6, 3)
    choice = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-4), output, keep=6)
    assert torch.equal(choice.kept, torch.arange(6))
    assert choice.removal_order.numel() == 0
