"""Tokens are drawn from the likeliest in proportion, by each sequence's own random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intraslice_core.calibration.sampling import random_numbers, sample
from intraslice_core.errors import NumericalError


def test_frequencies_are_the_probabilities_of_the_likeliest_tokens() -> None:
    logits = torch.tensor([1.0, 3.0, -2.0, 2.0, 0.0])
    draws = 20_000
    uniforms = random_numbers(0, 0, draws)
    counts = np.bincount(sample(logits.expand(draws, -1), uniforms, top_k=3), minlength=5)
    expected = torch.tensor([1.0, 3.0, -torch.inf, 2.0, -torch.inf]).double().softmax(-1)
    # Three standard deviations of the most uncertain count.
    assert np.abs(counts / draws - expected.numpy()).max() < 3 * 0.5 / draws**0.5
    assert counts[2] == counts[4] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 300).to(dtype)
    uniforms = np.array([random_numbers(1, row, 1)[0] for row in range(40)])
    together = sample(logits, uniforms)
    order = torch.randperm(40)
    assert sample(logits[order], uniforms[order.numpy()]) == [together[row] for row in order]
    alone = [sample(logits[[row]], uniforms[[row]])[0] for row in range(40)]
    assert alone == together


def test_equally_likely_tokens_are_ordered_by_their_ids() -> None:
    """The order of equal logits is not defined in `topk`, but does not change the token."""
    logits = torch.zeros(2, 4)
    assert sample(logits, np.array([0.1, 0.9]), top_k=4) == [0, 3]
    # The likeliest token comes in its turn, not first.
    logits[:, 3] = 0.1
    assert sample(logits, np.array([0.1, 0.9]), top_k=4) == [0, 3]


def test_one_candidate_is_the_likeliest_token() -> None:
    logits = torch.randn(30, 100)
    assert sample(logits, np.full(30, 0.999), top_k=1) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_random_numbers_at_the_ends_give_a_candidate(uniform: float) -> None:
    logits = torch.linspace(-3.0, 3.0, 20)[None]
    assert sample(logits, np.array([uniform]), top_k=5)[0] in range(15, 20)


def test_streams_differ_by_seed_and_sequence() -> None:
    streams = {tuple(random_numbers(seed, index, 4)) for seed in (0, 1) for index in range(50)}
    assert len(streams) == 100
    np.testing.assert_array_equal(random_numbers(0, 3, 9)[:4], random_numbers(0, 3, 4))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_logit_that_is_not_finite_is_an_error(value: float) -> None:
    logits = torch.zeros(2, 100)
    logits[1, 17] = value
    with pytest.raises(NumericalError, match="not finite"):
        sample(logits, np.array([0.5, 0.5]))
