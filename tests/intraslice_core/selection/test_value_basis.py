"""Value bases compared with independent formulas."""

from __future__ import annotations

import torch

from intraslice_core.selection import value_basis


def heads_problem(heads: int = 4, head_dim: int = 6, hidden: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(300, heads * head_dim, generator=generator, dtype=torch.float64)
    samples = samples * torch.rand(heads * head_dim, generator=generator, dtype=torch.float64) * 3
    output = torch.randn(heads * head_dim, hidden, generator=generator, dtype=torch.float64)
    return samples, output


def test_group_moment_sums_the_groups_own_heads() -> None:
    samples, _ = heads_problem()
    gram = samples.mT @ samples
    moment = value_basis.group_second_moment(gram, 2, 6)
    expected = sum(samples[:, h * 6 : h * 6 + 6].mT @ samples[:, h * 6 : h * 6 + 6] for h in (2, 3))
    torch.testing.assert_close(moment[1], expected)


def output_error(samples: torch.Tensor, output: torch.Tensor, basis: torch.Tensor) -> float:
    """Return the error of one head's output after the best refit on the projected values."""
    target = samples @ output
    projected = samples @ basis
    refit = torch.linalg.lstsq(projected, target).solution
    return float((target - projected @ refit).square().sum())


def test_weighted_basis_is_never_worse_for_the_output_than_pca() -> None:
    samples, output = heads_problem(heads=1, head_dim=10, hidden=4)
    moment = value_basis.group_second_moment(samples.mT @ samples, 1, 10)
    for keep in range(1, 10):
        pca, _ = value_basis.pca_basis(moment, keep)
        weighted, _ = value_basis.weighted_basis(moment, output, keep)
        pca_error = output_error(samples, output, pca[0])
        assert output_error(samples, output, weighted[0]) <= pca_error * (1 + 1e-6) + 1e-3


def test_weighted_basis_reaches_the_best_rank_k_error() -> None:
    samples, output = heads_problem(heads=1, head_dim=10, hidden=8)
    moment = value_basis.group_second_moment(samples.mT @ samples, 1, 10)
    best = torch.linalg.svdvals(samples @ output).square()
    for keep in (1, 3, 5):
        basis, _ = value_basis.weighted_basis(moment, output, keep)
        assert abs(output_error(samples, output, basis[0]) - float(best[keep:].sum())) < 1e-2


def test_bases_have_orthonormal_columns() -> None:
    samples, output = heads_problem()
    moment = value_basis.group_second_moment(samples.mT @ samples, 2, 6)
    for basis in (
        value_basis.pca_basis(moment, 3)[0],
        value_basis.weighted_basis(moment, output, 3)[0],
        value_basis.magnitude_basis(torch.randn(12, 7), output, 2, 3),
    ):
        assert basis.shape == (2, 6, 3)
        torch.testing.assert_close(
            basis.mT @ basis, torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
        )
