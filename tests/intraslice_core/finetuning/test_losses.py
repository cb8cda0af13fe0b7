"""Losses equal their formulas, and the gradient in parts equals that of the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from intraslice_core.config import RecoveryConfig, Schedule
from intraslice_core.finetuning.objective import (
    divergence,
    hidden_state_error,
    next_token_loss,
    sum_over_parts,
)
from intraslice_core.finetuning.training import learning_rate_factor


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


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_hidden_states_error_is_relative_to_each_position_and_a_mean_over_layers(
    scale: float,
) -> None:
    teacher = torch.tensor([[[3.0, 4.0], [0.0, 2.0 * scale]]])
    student = torch.tensor([[[3.0, 5.0], [0.0, 1.0 * scale]]])
    expected = (1 / 25 + 1 / 4) / 2
    error = hidden_state_error([student, teacher], [teacher, teacher])
    assert float(error) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_a_gradient_in_parts_is_the_gradient_of_the_whole(rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 6, generator=generator, requires_grad=True)
    head = torch.randn(6, 3, generator=generator, requires_grad=True)
    inputs = torch.randn(5, 4, generator=generator)
    expected = (inputs @ weight @ head).exp().sum()
    gradients = torch.autograd.grad(expected / 5, (weight, head))
    total = sum_over_parts(inputs @ weight, rows, lambda leaf, _: (leaf @ head).exp().sum(), [head])
    (total / 5).backward()
    torch.testing.assert_close((weight.grad, head.grad), gradients)
    torch.testing.assert_close(total, expected)


def test_each_part_receives_its_rows() -> None:
    hidden = torch.zeros(5, 2, requires_grad=True)
    seen = []

    def loss(leaf: Tensor, rows: slice) -> Tensor:
        seen.extend(range(5)[rows])
        return leaf.sum()

    sum_over_parts(hidden * 1.0, 2, loss)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(schedule: Schedule) -> None:
    places = [index / 200 for index in range(201)]
    rates = [learning_rate_factor(place, schedule, 0.1) for place in places]
    assert rates[20] == pytest.approx(1.0)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[10] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert learning_rate_factor(1.7, schedule, 0.1) == rates[-1]


def test_a_constant_rate_stays_at_its_peak_after_the_warm_up() -> None:
    assert learning_rate_factor(0.05, "constant", 0.1) == pytest.approx(0.5)
    assert {learning_rate_factor(place, "constant", 0.1) for place in (0.1, 0.5, 1.0)} == {1.0}
    assert learning_rate_factor(0.0, "constant", 0.0) == 1.0


def test_the_default_learning_rate_depends_on_the_trained_parameters() -> None:
    rates = {
        adapter: RecoveryConfig.model_validate({"adapter": adapter}).peak_learning_rate
        for adapter in ("none", "lora", "dora")
    }
    assert rates == {"none": 1e-4, "lora": 1e-3, "dora": 1e-3}
    assert RecoveryConfig(adapter="none", learning_rate=0.5).peak_learning_rate == 0.5
