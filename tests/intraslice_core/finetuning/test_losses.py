"""Losses equal their formulas, and the gradient in parts equals that of the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from intraslice_core.finetuning.training import (
    WARM_UP,
    backward_in_parts,
    divergence,
    learning_rate_factor,
    next_token_loss,
)


def random_logits(seed: int) -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_the_kullback_leibler_sum_of_softened_distributions(
    temperature: float,
) -> None:
    student, teacher = random_logits(0), random_logits(1)
    expected = 0.0
    for row in range(5):
        weights = [
            [math.exp(float(value) / temperature) for value in logits[row]]
            for logits in (teacher, student)
        ]
        p, q = ([weight / sum(row_weights) for weight in row_weights] for row_weights in weights)
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    loss = float(divergence(student, teacher, temperature))
    assert loss == pytest.approx(temperature**2 * expected, rel=1e-5)
    assert float(divergence(teacher, teacher, temperature)) == pytest.approx(0.0, abs=1e-5)


def test_next_token_loss_is_the_sum_of_negative_log_probabilities() -> None:
    logits, targets = random_logits(2), torch.tensor([0, 6, 3, 3, 1])
    expected = -sum(
        math.log(float(torch.softmax(logits[row].double(), -1)[target]))
        for row, target in enumerate(targets.tolist())
    )
    assert float(next_token_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_a_gradient_in_parts_is_the_gradient_of_the_whole(rows: int) -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(4))
    (whole,) = torch.autograd.grad((inputs @ weight).exp().sum() / 5, weight)
    total = backward_in_parts(
        inputs @ weight, rows, lambda leaf, _: leaf.exp().sum(), scale=1.0 / 5
    )
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, whole)
    assert float(total) == pytest.approx(float((inputs @ weight).detach().exp().sum()), rel=1e-6)


def test_each_part_receives_its_rows() -> None:
    hidden = torch.zeros(5, 2, requires_grad=True)
    seen = []

    def loss(leaf: Tensor, rows: slice) -> Tensor:
        seen.extend(range(5)[rows])
        return leaf.sum()

    backward_in_parts(hidden * 1.0, 2, loss)
    assert seen == [0, 1, 2, 3, 4]


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    places = [index / 200 for index in range(201)]
    rates = [learning_rate_factor(place) for place in places]
    peak = places.index(WARM_UP)
    assert rates[peak] == pytest.approx(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert learning_rate_factor(1.7) == rates[-1]
