"""Selection of neurons compared with brute force."""

from __future__ import annotations

import pytest
import torch

from intraslice_core import linalg
from intraslice_core.linalg import mixed_precision as factorising_in_float32
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


def test_ridge_leverage_is_low_where_the_other_neurons_span_one() -> None:
    generator = torch.Generator().manual_seed(2)
    inner = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    inner[:, 5] = 0.3 * inner[:, 0] - 0.2 * inner[:, 1] + 0.1 * inner[:, 2]
    gram = inner.mT @ inner / 400
    score = neurons.leverage_score(gram, 0.01)
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    expected = (gram @ torch.linalg.inv(gram + ridge)).diagonal()
    torch.testing.assert_close(score, expected, rtol=1e-9, atol=1e-12)
    assert int(score.argmin()) == 5
    assert 5 not in neurons.keep_best_neurons(score, 7).kept.tolist()
    # The others span it, so the down projection that they are refitted to loses nothing.
    assert float(score[5]) < 0.5 < float(score[[3, 4, 6, 7]].min())
    # λ is relative: the scale of the activations changes no score.
    torch.testing.assert_close(neurons.leverage_score(1e6 * gram, 0.01), score)


@pytest.mark.parametrize("keep", [0, 31, 70])
def test_elimination_in_float32_keeps_the_neurons_of_float64(keep: int) -> None:
    gram, output = problem(100, 20)
    expected = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-3), output, keep)
    with factorising_in_float32():
        factor = linalg.damped_cholesky(gram, 1e-3)
    assert factor.rounded_inverse() is not None
    choice = neurons.eliminate_neurons(factor, output, keep)
    assert torch.equal(choice.kept, expected.kept)
    assert choice.removal_cost.dtype == choice.score.dtype == torch.float64
    torch.testing.assert_close(choice.removal_cost, expected.removal_cost, rtol=1e-3, atol=0.0)
    assert not torch.equal(choice.removal_cost, expected.removal_cost)


def test_an_elimination_that_becomes_imprecise_is_repeated_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gram, output = problem(100, 20)
    expected = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-3), output, 31)
    with factorising_in_float32():
        factor = linalg.damped_cholesky(gram, 1e-3)
    monkeypatch.setattr(linalg.Factor, "inverts", lambda self, inverse, rows: len(rows) > 50)
    choice = neurons.eliminate_neurons(factor, output, 31)
    assert torch.equal(choice.removal_cost, expected.removal_cost)
    assert torch.equal(choice.removal_order, expected.removal_order)


def test_leverage_scores_in_float32_are_those_of_float64() -> None:
    gram, _ = problem(60, 1)
    expected = neurons.leverage_score(gram, 1e-2)
    with factorising_in_float32():
        score = neurons.leverage_score(gram, 1e-2)
    torch.testing.assert_close(score, expected, rtol=0.0, atol=1e-4)
    assert not torch.equal(score, expected)
