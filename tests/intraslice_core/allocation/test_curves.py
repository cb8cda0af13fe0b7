"""Curves have rounding steps of measured losses and reject invalid ones."""

from __future__ import annotations

import numpy as np
import pytest

from intraslice_core.allocation.curves import (
    Curve,
    HeadOption,
    LayerCurves,
    ModelCurves,
    pair_curve,
    rounding_steps,
)
from intraslice_core.plan import ModelGeometry
from tests.intraslice_core.allocation.instances import model_curves

GEOMETRY = ModelGeometry(
    num_hidden_layers=2,
    hidden_size=8,
    intermediate_size=20,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=10,
    tie_word_embeddings=True,
)


def test_steps_are_multiples_and_the_dense_size() -> None:
    assert rounding_steps(20, 8).tolist() == [8, 16, 20]
    assert rounding_steps(16, 8).tolist() == [8, 16]
    assert rounding_steps(5, 8).tolist() == [5]
    assert rounding_steps(20, 8, removable=True).tolist() == [0, 8, 16, 20]


def test_loss_of_a_step_is_the_loss_of_the_number_kept() -> None:
    curve = Curve.from_losses(np.array([9.0, 7.0, 4.0, 2.0, 1.0, 0.0]), 2)
    assert (curve.sizes.tolist(), curve.losses.tolist()) == ([2, 4, 5], [4.0, 1.0, 0.0])


def test_lowest_scores_are_removed_first() -> None:
    curve = Curve.from_scores(np.array([4.0, 1.0, 3.0, 2.0]), 1, removable=True)
    assert curve.losses.tolist() == [10.0, 6.0, 3.0, 1.0, 0.0]


@pytest.mark.parametrize(("round_to", "sizes"), [(8, [4, 8]), (2, [*range(1, 9)]), (3, [3, 6, 8])])
def test_pairs_make_widths_that_are_multiples(round_to: int, sizes: list[int]) -> None:
    curve = pair_curve(np.arange(8, -1, -1.0), round_to)
    assert curve.sizes.tolist() == sizes
    assert all(2 * size % round_to == 0 or size == 8 for size in sizes)


def test_larger_sizes_never_cost_more() -> None:
    curve = Curve(sizes=np.array([1, 2, 3]), losses=np.array([1.0, 1.5, 0.0]))
    assert curve.losses.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("sizes", "losses"),
    [
        ([], []),
        ([1, 2], [0.0]),
        ([2, 1], [1.0, 0.0]),
        ([1, 1], [1.0, 0.0]),
        ([-1, 1], [1.0, 0.0]),
        ([1, 2], [float("nan"), 0.0]),
        ([1, 2], [float("inf"), 0.0]),
    ],
)
def test_invalid_curves_are_rejected(sizes: list[int], losses: list[float]) -> None:
    with pytest.raises(ValueError, match=r"sizes|loss"):
        Curve(sizes=np.array(sizes, dtype=np.int64), losses=np.array(losses))


@pytest.mark.parametrize("shape", [(0, 1, 0.0), (1, 0, 0.0), (-1, -1, 0.0), (1, 1, float("nan"))])
def test_invalid_head_options_are_rejected(shape: tuple[int, int, float]) -> None:
    heads, groups, loss = shape
    with pytest.raises(ValueError, match=r"heads|loss"):
        HeadOption(heads_per_group=heads, groups=groups, loss=loss)


def test_layers_must_have_the_same_sizes_and_the_dense_ones() -> None:
    curves = model_curves(GEOMETRY, 2, 0)
    first, second = curves.layers
    other = Curve.from_losses(np.zeros(21), 4)
    with pytest.raises(ValueError, match="same sizes"):
        ModelCurves(
            geometry=GEOMETRY,
            layers=(first, LayerCurves(attention=second.attention, widths=other)),
        )
    with pytest.raises(ValueError, match="curves of 1 layers, the model has 2"):
        ModelCurves(geometry=GEOMETRY, layers=(first,))
    larger = GEOMETRY.model_copy(update={"intermediate_size": 24})
    with pytest.raises(ValueError, match="not the dense model's"):
        ModelCurves(geometry=larger, layers=curves.layers)
    more = GEOMETRY.model_copy(update={"num_attention_heads": 8})
    with pytest.raises(ValueError, match="all heads"):
        ModelCurves(geometry=more, layers=curves.layers)
