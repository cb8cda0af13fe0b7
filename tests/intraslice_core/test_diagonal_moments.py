"""Means, mean squares and sequence norms of activations, streamed in any batches."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.diagonal_moments import DiagonalAccumulator
from intraslice_core.errors import NumericalError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moments_are_those_of_all_tokens_however_they_are_batched(dtype: torch.dtype) -> None:
    drawn = torch.randn(7, 11, 5, generator=torch.Generator().manual_seed(0)).to(dtype) * 3 + 1
    accumulator = DiagonalAccumulator()
    for batch in (drawn[:2], drawn[2:3], drawn[3:]):
        accumulator.add(batch)
    moments = accumulator.moments()
    for column in range(5):
        values = [float(value) for value in drawn[..., column].flatten()]
        mean = sum(values) / len(values)
        energy = sum(value**2 for value in values) / len(values)
        norms = [
            sum(float(value) ** 2 for value in sequence) ** 0.5 for sequence in drawn[..., column]
        ]
        assert float(moments.mean[column]) == pytest.approx(mean, rel=1e-6)
        assert float(moments.energy[column]) == pytest.approx(energy, rel=1e-6)
        assert float(moments.norm[column]) == pytest.approx(sum(norms) / 7, rel=1e-6)


def test_a_small_variance_beside_a_large_mean_survives() -> None:
    drawn = torch.randn(4, 512, 3, generator=torch.Generator().manual_seed(1)) + 300.0
    accumulator = DiagonalAccumulator()
    accumulator.add(drawn)
    moments = accumulator.moments()
    expected = drawn.double().flatten(0, 1).var(0, unbiased=False)
    torch.testing.assert_close(moments.energy - moments.mean.square(), expected, rtol=2e-3, atol=0)


def test_the_prefix_is_left_out() -> None:
    drawn = torch.ones(2, 6, 3)
    drawn[:, 0] = 1e6
    accumulator = DiagonalAccumulator(prefix_length=1)
    accumulator.add(drawn)
    moments = accumulator.moments()
    assert moments.mean.tolist() == [1.0] * 3
    assert moments.energy.tolist() == [1.0] * 3


def test_nothing_added_and_infinite_activations_are_errors() -> None:
    with pytest.raises(NumericalError, match="no tokens"):
        DiagonalAccumulator().moments()
    accumulator = DiagonalAccumulator()
    accumulator.add(torch.full((1, 2, 3), torch.inf))
    with pytest.raises(NumericalError, match="NaN or infinite"):
        accumulator.moments()
