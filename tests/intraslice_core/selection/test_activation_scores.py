"""Scores of activations on planted examples."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.errors import NumericalError
from intraslice_core.selection.activation_scores import (
    fluctuation_score,
    head_lengths,
    standardised,
    wanda_score,
)


def statistics(activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and mean square of activations, (tokens, width)."""
    return activations.mean(0), activations.square().mean(0)


def test_an_activation_that_never_changes_has_no_fluctuation_but_a_wanda_score() -> None:
    activations = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()
    activations[:, 1] = 5.0
    output = torch.ones(3, 4, dtype=torch.float64)
    mean, energy = statistics(activations)
    assert fluctuation_score(mean, energy, output).argmin() == 1
    assert fluctuation_score(mean, energy, output)[1] == pytest.approx(0.0, abs=1e-12)
    assert wanda_score(energy, output).argmax() == 1


def test_the_fluctuation_is_the_output_error_of_replacing_an_activation_by_its_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    activations = 2.0 + torch.randn(300, 5, generator=generator, dtype=torch.float64)
    output = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mean, energy = statistics(activations)
    errors = []
    for neuron in range(5):
        replaced = activations.clone()
        replaced[:, neuron] = mean[neuron]
        errors.append(((activations - replaced) @ output).square().sum(-1).mean())
    torch.testing.assert_close(fluctuation_score(mean, energy, output), torch.stack(errors))


def test_wanda_is_the_mean_of_weights_times_input_norms() -> None:
    generator = torch.Generator().manual_seed(2)
    activations = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    output = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    _, energy = statistics(activations)
    norms = activations.norm(dim=0) / 200**0.5
    expected = (output.abs() * norms.unsqueeze(-1)).mean(-1)
    torch.testing.assert_close(wanda_score(energy, output), expected)
    torch.testing.assert_close(wanda_score(4.0 * energy, output), 2.0 * expected)


def test_standardised_scores_do_not_depend_on_a_module_s_scale() -> None:
    scores = torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    both = standardised(torch.stack((scores, 1e6 * scores + 3.0)))
    torch.testing.assert_close(both[0], both[1])
    assert both.mean(-1).abs().max() < 1e-9
    torch.testing.assert_close(both.square().mean(-1), torch.ones(2, dtype=torch.float64))


def test_equal_scores_become_zero_and_nan_is_an_error() -> None:
    assert not standardised(torch.full((7,), 0.1)).any()
    with pytest.raises(NumericalError, match="a score"):
        standardised(torch.tensor([1.0, torch.nan]))


def test_a_head_s_length_is_the_mean_plus_ten_over_its_width_times_the_largest() -> None:
    energy = torch.tensor([1.0, 4.0, 9.0, 16.0, 4.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    first = (1 + 2 + 3 + 4) / 4 + 10 / 4 * 4
    assert head_lengths(energy, 2).tolist() == [first] * 4 + [2 + 10 / 4 * 2] * 4
