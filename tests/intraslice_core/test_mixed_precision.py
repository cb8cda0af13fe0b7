"""Factorisations in float32 give the results of float64, or float64 is used."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intraslice_core import linalg, mixed_precision
from intraslice_core.errors import NumericalError
from intraslice_core.linalg import mixed_precision as factorising_in_float32
from intraslice_core.mixed_precision import (
    RoundedFactor,
    System,
    refined_eigenbasis,
    rounded_factor,
)
from intraslice_core.refit import errors_located_at


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(width: int, rank: int, seed: int = 0) -> Tensor:
    samples = random(rank, width, seed=seed)
    return samples.mT @ samples / rank


def of_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """Return a matrix with these eigenvalues in a random basis."""
    basis = torch.linalg.qr(random(len(values), len(values), seed=seed)).Q
    return (basis * values) @ basis.mT


def system_of(matrix: Tensor) -> System:
    return System(matrix=matrix, diagonal=matrix.diagonal().clone())


def relative_error(matrix: Tensor, solution: Tensor, expected: Tensor) -> float:
    """Return the error of a solution in the norm of the matrix, relative to the solution."""
    difference = solution - expected
    error, energy = (
        (difference * (matrix @ difference)).sum(),
        (expected * (matrix @ expected)).sum(),
    )
    return float((error / energy).sqrt())


# -- solutions -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(2, 48),
    rank=st.integers(1, 80),
    columns=st.integers(1, 70),
    exponent=st.integers(-6, 0),
    per_dimension=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_solutions_are_those_of_float64(
    width: int, rank: int, columns: int, exponent: int, per_dimension: bool, seed: int
) -> None:
    gram, right = second_moment(width, rank, seed), random(width, columns, seed=seed + 1)
    damping = 10.0**exponent
    expected = linalg.damped_cholesky(gram, damping, per_dimension=per_dimension)
    with factorising_in_float32():
        factor = linalg.damped_cholesky(gram, damping, per_dimension=per_dimension)
    assert factor.damping == expected.damping
    matrix = expected.cholesky @ expected.cholesky.mT
    error = relative_error(matrix, factor.solve(right), expected.solve(right))
    assert error <= 2 * mixed_precision.SOLUTION_TOLERANCE


def test_well_conditioned_matrices_are_factorised_in_float32() -> None:
    with factorising_in_float32():
        factor = linalg.damped_cholesky(second_moment(64, 200), 1e-2)
        factor.solve(random(64, 100))
    assert factor.dtype == torch.float32


def test_narrow_matrices_are_factorised_in_float64() -> None:
    with factorising_in_float32(65):
        assert linalg.damped_cholesky(second_moment(64, 200), 1e-2).dtype == torch.float64


@pytest.mark.parametrize("condition", [1e8, 1e12])
def test_ill_conditioned_matrices_are_factorised_in_float64(condition: float) -> None:
    matrix = of_spectrum(torch.logspace(0, -float(torch.tensor(condition).log10()), 40).double())
    right = random(40, 3)
    with factorising_in_float32():
        factor = linalg.damped_cholesky(matrix, 0.0)
    assert factor.dtype == torch.float64
    assert torch.equal(factor.solve(right), linalg.damped_cholesky(matrix, 0.0).solve(right))


def test_energies_of_any_size_are_scaled_into_the_range_of_float32() -> None:
    sizes = torch.logspace(-12, 12, 30).double().unsqueeze(-1)
    unscaled, right = second_moment(30, 90), random(30, 50)
    factor = rounded_factor(system_of(sizes * unscaled * sizes.mT))
    assert factor is not None
    solution = factor.solve(sizes * right)
    assert solution is not None
    expected = torch.linalg.solve(unscaled, right)
    assert relative_error(unscaled, sizes * solution, expected) <= 1e-4
    inverse = factor.inverse()
    assert inverse is not None
    torch.testing.assert_close(
        sizes * inverse.double() * sizes.mT, torch.linalg.inv(unscaled), rtol=1e-3, atol=1e-4
    )


def test_energies_beyond_the_range_of_float32_are_left_to_float64() -> None:
    sizes = torch.logspace(-18, 18, 30).double().unsqueeze(-1)
    assert rounded_factor(system_of(sizes * second_moment(30, 90) * sizes.mT)) is None


def planted(matrix: Tensor, noise: float) -> RoundedFactor:
    """Return a factor of the matrix with relative errors of a size in all entries."""
    factor = rounded_factor(system_of(matrix))
    assert factor is not None
    errors = 1.0 + noise * random(*matrix.shape, seed=5).float()
    return RoundedFactor(
        system=factor.system, lower=factor.lower * errors, scale=factor.scale, error=factor.error
    )


def test_refinement_repairs_an_imprecise_factor() -> None:
    matrix, right = second_moment(40, 200), random(40, 3)
    factor = planted(matrix, 1e-3)
    expected = torch.linalg.solve(matrix, right)
    assert relative_error(matrix, factor.approximate(right), expected) > 1e-4
    solution = factor.solve(right)
    assert solution is not None
    assert relative_error(matrix, solution, expected) <= 2 * mixed_precision.SOLUTION_TOLERANCE


def test_a_factor_that_refinement_cannot_repair_gives_no_solution() -> None:
    assert planted(second_moment(40, 200), 0.5).solve(random(40, 3)) is None


def test_a_failed_check_is_followed_by_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    gram, right = second_moment(40, 200), random(40, 80)
    exact = linalg.damped_cholesky(gram, 1e-2)
    with factorising_in_float32():
        precise, doubted = (linalg.damped_cholesky(gram, 1e-2) for _ in range(2))
    solution = precise.solve(right)
    assert precise.dtype == torch.float32
    assert not torch.equal(solution, exact.solve(right))
    monkeypatch.setattr(mixed_precision, "SOLUTION_TOLERANCE", 0.0)
    assert torch.equal(doubted.solve(right), exact.solve(right))
    assert doubted.dtype == torch.float64


def test_factors_of_one_matrix_keep_their_dampings() -> None:
    gram, right = second_moment(30, 100), random(30, 2)
    with factorising_in_float32():
        matrix = linalg.DampedMatrix(gram)
        factors = [matrix.factor(damping) for damping in (1e-2, 1.0)]
    for factor in factors:
        expected = linalg.damped_cholesky(gram, factor.damping).solve(right)
        torch.testing.assert_close(factor.solve(right), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [1, 17, 39])
def test_leading_rows_make_up_for_the_others(keep: int) -> None:
    gram, rows = second_moment(40, 150), random(40, 90)
    exact = linalg.damped_cholesky(gram, 1e-3)
    with factorising_in_float32():
        factor = linalg.damped_cholesky(gram, 1e-3)
        fitted = factor.refit_leading(rows, keep)
    assert factor.dtype == torch.float32
    matrix = exact.cholesky @ exact.cholesky.mT
    expected = torch.linalg.solve(matrix[:keep, :keep], matrix[:keep] @ rows)
    torch.testing.assert_close(exact.refit_leading(rows, keep), expected)
    torch.testing.assert_close(fitted, expected, rtol=1e-4, atol=1e-4)


def test_the_ladder_climbs_as_in_float64() -> None:
    indefinite = torch.diag(torch.tensor([1.0, 1.0, -0.05], dtype=torch.float64))
    with factorising_in_float32():
        assert linalg.damped_cholesky(indefinite, 1e-3).damping == pytest.approx(0.1)


def test_the_end_of_the_ladder_names_layer_and_module() -> None:
    matrix = torch.diag(torch.tensor([1.0, -100.0, 1.0], dtype=torch.float64))
    with (
        pytest.raises(NumericalError, match="not positive definite") as caught,
        errors_located_at(3, "mlp"),
        factorising_in_float32(),
    ):
        linalg.damped_cholesky(matrix, 1e-4)
    assert (caught.value.layer, caught.value.module) == (3, "mlp")


# -- inverses ------------------------------------------------------------------------------------


def test_the_inverse_in_float32_is_checked() -> None:
    matrix = second_moment(40, 200)
    factor = rounded_factor(system_of(matrix))
    assert factor is not None
    inverse = factor.inverse()
    assert inverse is not None
    everything = torch.arange(40)
    assert factor.inverts(inverse, everything)
    rows = torch.arange(3, 31)
    part = torch.linalg.inv(matrix[rows][:, rows]).float()
    assert factor.inverts(part, rows)
    part[0, 0] *= 1.1
    assert not factor.inverts(part, rows)


def test_an_inverse_is_computed_in_float64_if_the_factor_is_not_precise_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mixed_precision, "INVERSE_TOLERANCE", 0.0)
    gram = second_moment(40, 200)
    with factorising_in_float32():
        factor = linalg.damped_cholesky(gram, 1e-2)
    assert factor.dtype == torch.float32
    assert factor.rounded_inverse() is None
    assert torch.equal(factor.inverse(), linalg.damped_cholesky(gram, 1e-2).inverse())


# -- eigenvectors --------------------------------------------------------------------------------

SPECTRA = {
    "random": torch.rand(96, generator=torch.Generator().manual_seed(1)).double(),
    "geometric": torch.logspace(0, -4, 96).double(),
    "equal": torch.ones(96).double(),
    "two clusters": torch.cat((torch.full((40,), 1.0), torch.full((56,), 3.0))).double(),
    "close pairs": torch.arange(48).repeat_interleave(2)
    + 1
    + 5e-6 * (torch.arange(96) % 2).double(),
    "massive": torch.cat((torch.linspace(0.1, 1.0, 95), torch.tensor([1e5]))).double(),
    "rank deficient": torch.cat((torch.zeros(60), torch.linspace(0.5, 2.0, 36))).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_eigenvectors_are_as_precise_as_promised(name: str) -> None:
    values = SPECTRA[name].sort(descending=True).values
    matrix = of_spectrum(values)
    with factorising_in_float32():
        computed, vectors = linalg.eigenbasis(matrix)
    typical = float(values[values <= 64 * values.mean()].mean())
    assert (computed.diff() <= 0).all()
    torch.testing.assert_close(computed, values, rtol=1e-9, atol=1e-5 * typical)
    residual = (matrix @ vectors - vectors * computed).norm(dim=0)
    assert residual.square().mean().sqrt() <= 2 * mixed_precision.EIGEN_TOLERANCE * typical
    deviation = vectors.mT @ vectors - torch.eye(96, dtype=torch.float64)
    assert deviation.norm(dim=0).square().mean().sqrt() <= 2 * mixed_precision.ORTHONORMALITY


@pytest.mark.parametrize(
    "name", ["random", "geometric", "equal", "two clusters", "close pairs", "massive"]
)
def test_eigenvectors_of_these_spectra_are_refined(name: str) -> None:
    assert refined_eigenbasis(of_spectrum(SPECTRA[name])) is not None


def test_large_clusters_of_eigenvalues_are_left_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = of_spectrum(SPECTRA["close pairs"])
    monkeypatch.setattr(mixed_precision, "LARGEST_CLUSTER", 1 / 96)
    assert refined_eigenbasis(matrix) is None


@settings(max_examples=25, deadline=None)
@given(width=st.integers(2, 40), rank=st.integers(1, 60), seed=st.integers(0, 10_000))
def test_eigenvectors_rebuild_the_matrix(width: int, rank: int, seed: int) -> None:
    gram = second_moment(width, rank, seed)
    with factorising_in_float32():
        values, vectors = linalg.eigenbasis(gram)
    mean = float(gram.diagonal().mean())
    torch.testing.assert_close((vectors * values) @ vectors.mT, gram, rtol=0.0, atol=1e-4 * mean)


def test_leading_subspaces_are_those_of_float64() -> None:
    matrix = of_spectrum(torch.cat((torch.rand(60), 2.0 + torch.rand(36))).double())
    _, expected = linalg.eigenbasis(matrix)
    with factorising_in_float32():
        _, vectors = linalg.eigenbasis(matrix)
    outside = vectors[:, :36] - expected[:, :36] @ (expected[:, :36].mT @ vectors[:, :36])
    assert torch.linalg.matrix_norm(outside, 2) <= 1e-6


def test_an_imprecise_eigenbasis_is_followed_by_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = of_spectrum(SPECTRA["random"])
    exact = linalg.eigenbasis(matrix)
    with factorising_in_float32():
        refined = linalg.eigenbasis(matrix)
        monkeypatch.setattr(mixed_precision, "EIGEN_TOLERANCE", 0.0)
        repeated = linalg.eigenbasis(matrix)
    assert not torch.equal(refined[1], exact[1])
    assert torch.equal(repeated[0], exact[0])
    assert torch.equal(repeated[1], exact[1])


def test_a_zero_matrix_has_an_orthonormal_basis() -> None:
    with factorising_in_float32():
        values, vectors = linalg.eigenbasis(torch.zeros(5, 5))
    assert torch.equal(values, torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(5, dtype=torch.float64))


# -- in general ----------------------------------------------------------------------------------


def test_batches_are_factorised_in_float64() -> None:
    grams = torch.stack([second_moment(6, 20, seed) for seed in range(3)])
    right = random(3, 6, 2)
    with factorising_in_float32():
        values, vectors = linalg.eigenbasis(grams)
        factor = linalg.damped_cholesky(grams, 1e-2)
    assert factor.dtype == torch.float64
    expected_values, expected_vectors = linalg.eigenbasis(grams)
    assert torch.equal(values, expected_values)
    assert torch.equal(vectors, expected_vectors)
    assert torch.equal(factor.solve(right), linalg.damped_cholesky(grams, 1e-2).solve(right))


def test_inputs_are_never_mutated_in_float32() -> None:
    gram, right = second_moment(20, 50), random(20, 4)
    before, right_before = gram.clone(), right.clone()
    with factorising_in_float32():
        linalg.damped_cholesky(gram, 0.1).solve(right)
        linalg.eigenbasis(gram)
    assert torch.equal(gram, before)
    assert torch.equal(right, right_before)


def test_a_caller_with_imprecise_products_gets_precise_factorisations() -> None:
    gram, right = second_moment(64, 200), random(64, 40)
    with factorising_in_float32():
        expected = linalg.damped_cholesky(gram, 1e-2).solve(right)
        torch.set_float32_matmul_precision("medium")
        try:
            solution = linalg.damped_cholesky(gram, 1e-2).solve(right)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")
    assert torch.equal(solution, expected)
