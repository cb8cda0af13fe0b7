"""Damped factorisations: correct results, and typed errors for matrices that fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intraslice_core import linalg
from intraslice_core.errors import NumericalError


def second_moment(width: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    return samples.mT @ samples / rank


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 24), rank=st.integers(1, 40), seed=st.integers(0, 10_000))
def test_solution_satisfies_the_damped_system(width: int, rank: int, seed: int) -> None:
    gram = second_moment(width, rank, seed)
    right = torch.randn(width, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    factor = linalg.damped_cholesky(gram, 0.01)
    damped = gram + factor.damping * gram.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(damped @ factor.solve(right), right, rtol=1e-8, atol=1e-8)


def test_ladder_climbs_until_an_indefinite_matrix_factorises() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, -0.05], dtype=torch.float64))
    factor = linalg.damped_cholesky(matrix, 1e-3)
    assert factor.damping == pytest.approx(0.1)


def test_ladder_ends_in_a_typed_error() -> None:
    matrix = torch.diag(torch.tensor([1.0, -100.0, 1.0], dtype=torch.float64))
    with pytest.raises(NumericalError, match=r"not positive definite.*rank is 2.*too uniform"):
        linalg.damped_cholesky(matrix, 1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_raises_instead_of_being_replaced(value: float) -> None:
    matrix = torch.eye(3)
    matrix[1, 2] = value
    with pytest.raises(NumericalError, match="NaN or infinity"):
        linalg.damped_cholesky(matrix, 0.01)


def test_square_roots_multiply_to_the_matrix_and_to_the_identity() -> None:
    gram = second_moment(8, 30, 1)
    root, inverse = linalg.square_roots(gram, 0.0)
    torch.testing.assert_close(root @ root, gram)
    torch.testing.assert_close(root @ inverse, torch.eye(8, dtype=torch.float64))


def test_eigenbasis_is_descending_and_batched() -> None:
    grams = torch.stack([second_moment(6, 20, seed) for seed in range(3)])
    values, vectors = linalg.eigenbasis(grams)
    assert (values.diff(dim=-1) <= 0).all()
    rebuilt = (vectors * values.unsqueeze(-2)) @ vectors.mT
    torch.testing.assert_close(rebuilt, grams)


def test_inputs_are_never_mutated() -> None:
    gram = second_moment(5, 9, 3)
    before = gram.clone()
    linalg.damped_cholesky(gram, 0.1)
    linalg.eigenbasis(gram)
    linalg.square_roots(gram, 0.1)
    assert torch.equal(gram, before)


def test_shrinking_keeps_the_order_of_energies_and_scales_correlations() -> None:
    gram = second_moment(6, 6, 0)
    shrunk = linalg.shrunken(gram, 0.25)
    scale = gram.diagonal().rsqrt()
    correlations = scale[:, None] * gram * scale
    expected = correlations / 1.25
    expected.diagonal().fill_(1.0)
    scale = shrunk.diagonal().rsqrt()
    torch.testing.assert_close(scale[:, None] * shrunk * scale, expected)
    torch.testing.assert_close(shrunk.diagonal(), 1.25 * gram.diagonal())


def test_a_shrunken_matrix_need_not_be_copied_to_be_factorised() -> None:
    gram = second_moment(9, 20, 2)
    expected = linalg.damped_cholesky(linalg.shrunken(gram, 0.1), 1e-3)
    factor = linalg.damped_cholesky(gram, 1e-3, shrinkage=0.1)
    assert torch.equal(factor.cholesky, expected.cholesky)
    assert factor.damping == expected.damping


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
@pytest.mark.parametrize("kernel", ["eigh", "cholesky_ex", "qr", "solve"])
def test_lack_of_memory_is_not_a_numerical_error(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, kernel: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        factorise_with(monkeypatch, kernel, error)
    assert caught.value is error


@pytest.mark.parametrize("kernel", ["eigh", "cholesky_ex", "qr", "solve"])
def test_other_failures_of_kernels_are_numerical_errors(
    monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    error = RuntimeError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED")
    with pytest.raises(NumericalError, match="CUSOLVER_STATUS_EXECUTION_FAILED"):
        factorise_with(monkeypatch, kernel, error)


def test_singular_blocks_are_numerical_errors() -> None:
    with pytest.raises(NumericalError, match="singular"):
        linalg.solve(torch.zeros(2, 2), torch.ones(2, 1))


def factorise_with(monkeypatch: pytest.MonkeyPatch, kernel: str, error: RuntimeError) -> None:
    """Call the function that uses a kernel of torch, which raises."""

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch.linalg, kernel, fail)
    gram = second_moment(4, 9, 0)
    calls = {
        "eigh": lambda: linalg.eigenbasis(gram),
        "cholesky_ex": lambda: linalg.damped_cholesky(gram, 0.1),
        "qr": lambda: linalg.orthonormal_columns(gram),
        "solve": lambda: linalg.solve(gram, gram),
    }
    calls[kernel]()
