"""Factorisations in place agree with those that copy, and are within the memory of one copy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from intraslice_core import blocked, compensation, linalg
from intraslice_core.blocked import factorising_in_place
from intraslice_core.config import CalibrationConfig, CompressionConfig, Method
from intraslice_core.dampings import Dampings
from intraslice_core.errors import NumericalError
from intraslice_core.selection import neurons
from intraslice_core.statistics import Moments
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_llama

assert_close = partial(torch.testing.assert_close, rtol=1e-7, atol=1e-9)
WEIGHT_TOLERANCE = 1e-6
"""Largest difference of a weight matrix, relative to its norm, with copies and in place."""


@pytest.fixture(autouse=True, scope="module")
def narrow_panels() -> Iterator[None]:
    """Give small matrices many panels."""
    before, blocked.LEAST_WIDTH = blocked.LEAST_WIDTH, 3
    yield
    blocked.LEAST_WIDTH = before


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(width: int, seed: int) -> Tensor:
    """Return a Gram matrix of correlated columns of different energies."""
    inner = drawn(2 * width + 8, width, seed=seed) @ drawn(width, width, seed=seed + 1)
    inner = inner * torch.logspace(-1, 1, width, dtype=torch.float64)
    return inner.mT @ inner / len(inner)


widths, seeds = st.integers(1, 90), st.integers(0, 10_000)


# -- matrices --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(width=widths, seed=seeds)
def test_panels_are_all_rows_in_order(width: int, seed: int) -> None:
    rows = torch.arange(width)
    parts = [rows[part] for part in blocked.panels(width)]
    assert torch.equal(torch.cat(parts), rows)
    assert len(parts) <= blocked.PANELS
    assert blocked.panels(0) == []


@settings(max_examples=25, deadline=None)
@given(width=widths, seed=seeds, data=st.data())
def test_rows_and_columns_are_those_of_an_index(width: int, seed: int, data: st.DataObject) -> None:
    matrix, count = drawn(width, width, seed=seed), data.draw(st.integers(0, width))
    rows = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:count]
    assert torch.equal(blocked.submatrix(matrix, rows), matrix[rows][:, rows])
    ascending = rows.sort().values
    expected = matrix[ascending][:, ascending]
    compact = blocked.compacted(matrix, ascending)
    assert torch.equal(compact, expected)
    assert compact.data_ptr() == matrix.data_ptr() or count == 0


@settings(max_examples=25, deadline=None)
@given(width=widths, seed=seeds)
def test_a_symmetric_part_is_that_of_the_copying_path_bit_for_bit(width: int, seed: int) -> None:
    matrix = drawn(width, width, seed=seed)
    before = matrix.clone()
    assert torch.equal(blocked.symmetrised(matrix), linalg.symmetrise(matrix))
    assert torch.equal(matrix, before)


@settings(max_examples=25, deadline=None)
@given(width=widths, seed=seeds, columns=st.integers(1, 5), data=st.data())
def test_factor_solution_inverse_and_refit_are_those_of_the_copying_path(
    width: int, seed: int, columns: int, data: st.DataObject
) -> None:
    gram, right = second_moment(width, seed), drawn(width, columns, seed=seed + 2)
    keep = data.draw(st.integers(1, width))
    copying = linalg.damped_cholesky(gram, 1e-2, per_dimension=True, shrinkage=0.1)
    before = gram.clone()
    with factorising_in_place(width=1):
        factor = linalg.damped_cholesky(gram, 1e-2, per_dimension=True, shrinkage=0.1)
    assert torch.equal(gram, before)
    assert factor.is_in_place
    assert not copying.is_in_place
    assert factor.damping == copying.damping
    assert factor.rounded_inverse() is None
    assert_close(factor.cholesky, copying.cholesky)
    assert_close(factor.solve(right), copying.solve(right))
    assert_close(factor.refit_leading(right, keep), copying.refit_leading(right, keep))
    assert_close(factor.inverse(), copying.inverse())
    inverse = factor.inverse(overwrite=True)
    assert_close(inverse, copying.inverse())
    assert torch.equal(inverse, inverse.mT)


def test_an_inverse_that_overwrites_takes_the_memory_of_the_factor() -> None:
    with factorising_in_place(width=1):
        factor = linalg.damped_cholesky(second_moment(40, 0), 1e-2)
    place = factor.cholesky.data_ptr()
    assert factor.inverse().data_ptr() != place
    assert factor.inverse(overwrite=True).data_ptr() == place


def test_narrow_matrices_and_batches_are_copied() -> None:
    grams = torch.stack([second_moment(12, seed) for seed in range(2)])
    with factorising_in_place(width=12):
        assert not linalg.damped_cholesky(grams, 1e-2).is_in_place
        assert not linalg.damped_cholesky(grams[0, :11, :11], 1e-2).is_in_place
        assert linalg.damped_cholesky(grams[0], 1e-2).is_in_place
    with factorising_in_place(active=False, width=1):
        assert not linalg.damped_cholesky(grams[0], 1e-2).is_in_place


# -- errors ----------------------------------------------------------------------------------------


def test_the_ladder_climbs_as_with_copies() -> None:
    matrix = second_moment(30, 0)
    matrix -= 0.05 * matrix.diagonal().mean() * torch.eye(30, dtype=torch.float64)
    expected = linalg.damped_cholesky(matrix, 1e-3).damping
    with factorising_in_place(width=1):
        assert linalg.damped_cholesky(matrix, 1e-3).damping == expected > 1e-3


def test_an_indefinite_matrix_is_the_typed_error_without_a_rank_that_takes_copies() -> None:
    matrix = torch.diag(torch.tensor([1.0, -100.0, 1.0, 1.0], dtype=torch.float64))
    with (
        factorising_in_place(width=1),
        pytest.raises(NumericalError, match=r"definite.*damping 1.*too uniform") as caught,
    ):
        linalg.damped_cholesky(matrix, 1e-4)
    assert "rank is" not in caught.value.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_moment_that_is_not_finite_raises(value: float) -> None:
    matrix = torch.eye(9, dtype=torch.float64)
    matrix[1, 2] = value
    with factorising_in_place(width=1), pytest.raises(NumericalError, match="NaN or infinity"):
        linalg.damped_cholesky(matrix, 0.01)


# -- choices and fits ------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(width=st.integers(2, 90), seed=seeds, data=st.data())
def test_neurons_are_removed_in_the_same_order_at_the_same_cost(
    width: int, seed: int, data: st.DataObject
) -> None:
    gram, output = second_moment(width, seed), drawn(width, 6, seed=seed + 2)
    keep = data.draw(st.integers(0, width))
    expected = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-3), output, keep)
    with factorising_in_place(width=1):
        choice = neurons.eliminate_neurons(linalg.damped_cholesky(gram, 1e-3), output, keep)
    assert torch.equal(choice.kept, expected.kept)
    assert torch.equal(choice.removal_order, expected.removal_order)
    torch.testing.assert_close(choice.removal_cost, expected.removal_cost, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(choice.score, expected.score, rtol=1e-6, atol=0.0)


def test_leverage_scores_are_those_of_the_copying_path() -> None:
    gram = second_moment(50, 4)
    with factorising_in_place(width=1):
        score = neurons.leverage_score(gram, 1e-2)
    torch.testing.assert_close(score, neurons.leverage_score(gram, 1e-2), rtol=1e-9, atol=1e-9)


def moments(width: int, seed: int) -> Moments:
    return Moments(
        gram=second_moment(width, seed),
        cross=drawn(width, 8, seed=seed + 2),
        correction=0.1 * drawn(width, 8, seed=seed + 3),
        energy=50.0,
        tokens=100 + seed,
    )


@pytest.mark.parametrize("by_source", [False, True])
def test_a_fit_chooses_the_same_dampings_and_weights(by_source: bool) -> None:
    fit, held_out, prior = moments(40, 1), moments(40, 9), drawn(40, 8, seed=20)
    dampings = Dampings(
        own=(1e-6, 1e-2, 1.0), correction=(0.1, 1.0), per_dimension=True, by_source=by_source
    )
    expected = compensation.fit_output(fit, held_out, prior, dampings)
    with factorising_in_place(width=1):
        fitted = compensation.fit_output(fit, held_out, prior, dampings)
    assert fitted.damping_own == expected.damping_own
    assert fitted.damping_correction == expected.damping_correction
    assert_close(fitted.weight, expected.weight)


@pytest.mark.parametrize("method", ["intraslice_plus", "modegpt"])
def test_plan_and_weights_are_those_with_copies(tmp_path: Path, method: Method) -> None:
    dense = tiny_llama(tmp_path / "dense")
    config = CompressionConfig(
        ratio=0.3,
        method=method,
        round_to=2,
        dtype="float32",
        device="cpu",
        calibration=CalibrationConfig(
            source="pydoc", samples=16, sequence_length=64, self_share=0.0
        ),
    )
    copying = compress_unverified(dense, tmp_path / "copies", config)
    with factorising_in_place(width=1):
        in_place = compress_unverified(dense, tmp_path / "in_place", config)
    assert in_place.plan == copying.plan
    weights, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("in_place", "copies")
    )
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        difference = torch.linalg.vector_norm(weight - expected[name])
        assert difference <= WEIGHT_TOLERANCE * torch.linalg.vector_norm(expected[name]), name
