"""Scores of heads and neurons by the published formulas, and their selection."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.decoder_layer import LayerWeights, Linear, Norm
from intraslice_core.diagonal_moments import DiagonalMoments, LayerActivations
from intraslice_core.unit_removal import keep_best, keep_best_heads, score_units


def layer(heads: torch.Tensor, neurons: torch.Tensor) -> LayerWeights:
    """Return a layer whose output projections have these rows of inputs, (width, hidden_size)."""
    hidden = heads.shape[1]
    empty = Linear(weight=torch.zeros(1, hidden))
    return LayerWeights(
        num_key_value_heads=1,
        input_norm=Norm(weight=torch.ones(hidden)),
        query=empty,
        key=empty,
        value=empty,
        attention_output=Linear(weight=heads.T.contiguous()),
        mlp_norm=Norm(weight=torch.ones(hidden)),
        gate=None,
        up=empty,
        mlp_output=Linear(weight=neurons.T.contiguous()),
    )


ACTIVATIONS = torch.tensor(
    [
        [[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [5.0, 2.0, 3.0]],
        [[1.0, 2.0, 4.0], [3.0, 2.0, 0.0], [5.0, 2.0, 0.0]],
    ],
    dtype=torch.float64,
)
"""Two sequences of three tokens, three inputs."""
WEIGHTS = torch.tensor([[1.0, -1.0], [3.0, 4.0], [0.5, 0.0]])
"""Rows of inputs."""


def moments() -> LayerActivations:
    module = DiagonalMoments(
        mean=ACTIVATIONS.mean((0, 1)),
        energy=ACTIVATIONS.square().mean((0, 1)),
        norm=ACTIVATIONS.square().sum(1).sqrt().mean(0),
    )
    return LayerActivations(attention=module, mlp=module)


def test_scores_are_the_published_ones_on_a_planted_example() -> None:
    weights = layer(WEIGHTS, WEIGHTS)
    # FLAP: variances 8/3, 0 and 25/6 - (7/6)² times squared norms 2, 25 and 0.25.
    flap = score_units("fluctuation", moments(), weights)
    expected = [8 / 3 * 2, 0.0, (25 / 6 - 49 / 36) * 0.25]
    assert flap.mlp.tolist() == pytest.approx(expected, abs=1e-12)
    assert flap.attention is not None
    assert flap.attention.tolist() == pytest.approx([score**2 for score in expected], abs=1e-12)
    assert flap.mlp_mean.tolist() == pytest.approx([3.0, 2.0, 7 / 6])
    # Wanda: root mean squares times mean absolute weights 1, 3.5 and 0.25.
    wanda = score_units("wanda", moments(), weights)
    expected = [(35 / 3) ** 0.5, 2.0 * 3.5, (25 / 6) ** 0.5 * 0.25]
    assert wanda.mlp.tolist() == pytest.approx(expected)
    assert wanda.heads(3) is not None
    # 2SSP: mean over sequences of √35, √12, and of 3 and 4; weights play no part.
    norm = score_units("norm", moments(), weights)
    assert norm.mlp.tolist() == pytest.approx([35**0.5, 12**0.5, 3.5])
    assert norm.attention is None


def test_standardised_scores_compare_across_modules() -> None:
    large = score_units("fluctuation", moments(), layer(WEIGHTS, WEIGHTS * 1000.0))
    small = score_units("fluctuation", moments(), layer(WEIGHTS, WEIGHTS))
    for scores in (large, small):
        heads, neurons = scores.comparable(3)
        assert float(neurons.mean()) == pytest.approx(0.0, abs=1e-9)
        assert float(neurons.square().mean()) == pytest.approx(1.0)
        assert float(heads.square().mean()) == pytest.approx(1.0)
    torch.testing.assert_close(large.comparable(3)[1], small.comparable(3)[1])


def test_groups_with_the_largest_sum_stay_and_the_best_heads_in_each() -> None:
    scores = torch.tensor([5.0, 1.0, 4.0, 4.0, 0.0, 9.0, 2.0, 2.0])
    groups, queries = keep_best_heads(scores, 4, groups=3, queries=1)
    assert groups.tolist() == [0, 1, 2]
    assert queries.tolist() == [[0], [0], [1]]
    groups, queries = keep_best_heads(scores, 4, groups=1, queries=2)
    assert (groups.tolist(), queries.tolist()) == ([2], [[0, 1]])
    groups, queries = keep_best_heads(scores, 1, groups=1, queries=3)
    assert queries.tolist() == [[0, 2, 5]]
    assert keep_best(scores, 3).tolist() == [0, 2, 5]
