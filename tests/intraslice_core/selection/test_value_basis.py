"""Value bases compared with independent formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


def attention_problem(rank: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, `Wv` of two KV groups of 6 dimensions, and `Wo` of two query heads in each."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(500, 9) * (1.0 + torch.arange(9, dtype=torch.float64)) / 4
    value = torch.cat([draw(9, rank) @ draw(rank, 6) for _ in range(2)], dim=1)
    return inputs, value, draw(4 * 6, 9)


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_two_svds_return_the_published_factors_and_lose_the_singular_values_cut(keep: int) -> None:
    inputs, value, output = attention_problem()
    values = (inputs @ value).view(500, 2, 6)
    moment = torch.einsum("tgi,tgj->gij", values, values) / 500
    factors = value_basis.two_svds(moment, output, keep)
    spread, vectors = torch.linalg.eigh(inputs.mT @ inputs / 500)
    root = (vectors * spread.sqrt()) @ vectors.mT
    for group in range(2):
        rows = output.view(2, 2, 6, 9)[group]
        wide = torch.cat(list(rows), dim=1)
        left, sizes, right = torch.linalg.svd(
            root @ value[:, 6 * group : 6 * group + 6], full_matrices=False
        )
        left_2, sizes_2, right_2 = torch.linalg.svd(torch.diag(sizes) @ right @ wide)
        published = torch.linalg.inv(root) @ left @ left_2[:, :keep]
        published = published @ torch.diag(sizes_2[:keep]) @ right_2[:keep]
        own = value[:, 6 * group : 6 * group + 6] @ factors.basis[group]
        own = own @ factors.expansion[group].mT @ wide
        torch.testing.assert_close(own, published, rtol=1e-3, atol=1e-3)
        squares, damping = sizes_2[:6].square(), 1e-5 * float(sizes_2[0] ** 2)
        torch.testing.assert_close(factors.spectrum[group], squares, rtol=0, atol=damping)
        dropped = values[:, group] @ wide - inputs @ own
        error = float(dropped.square().sum()) / 500
        assert error == pytest.approx(float(sizes_2[keep:].square().sum()), rel=1e-3)
        assert error > 0.1


def test_values_of_low_rank_are_factorised_without_loss() -> None:
    inputs, value, output = attention_problem(rank=4)
    values = (inputs @ value).view(500, 2, 6)
    moment = torch.einsum("tgi,tgj->gij", values, values) / 500
    for keep in (4, 5):
        factors = value_basis.two_svds(moment, output, keep)
        projected = torch.einsum("tgi,gik,gjk->tgj", values, factors.basis, factors.expansion)
        torch.testing.assert_close(projected, values, rtol=0, atol=1e-3 * float(values.abs().max()))
        assert float(factors.spectrum[:, 4:].max()) < 1e-5 * float(factors.spectrum.max())
    factors = value_basis.two_svds(moment, output, 3)
    projected = torch.einsum("tgi,gik,gjk->tgj", values, factors.basis, factors.expansion)
    assert float((projected - values).abs().max()) > 0.1
