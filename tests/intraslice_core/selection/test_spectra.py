"""Spectra for the report: shares by rank, with both sides of the cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intraslice_core.selection.spectra import POINTS, loss_spectrum, score_spectrum


def test_heads_are_sorted_separately_and_added_up() -> None:
    scores = torch.tensor([[1.0, 3.0, 0.0], [0.0, 2.0, 4.0]])
    spectrum = score_spectrum("value dims", "eigenvalue", scores, 1)
    assert spectrum.ranks == (0, 1, 2)
    assert spectrum.values == pytest.approx((0.7, 0.3, 0.0))
    assert spectrum.kept_share == pytest.approx(0.7)


def test_losses_by_number_kept_become_losses_of_each_removal() -> None:
    losses = torch.tensor([torch.inf, 3.0, 1.0, 0.0], dtype=torch.float64)
    spectrum = loss_spectrum("MLP neurons", losses, 2)
    assert spectrum.measure == "loss"
    assert spectrum.values == pytest.approx((0.4, 0.4, 0.2))
    assert (spectrum.size, spectrum.kept) == (3, 2)
    assert spectrum.kept_share == pytest.approx(0.8)


def test_zero_scores_have_zero_shares() -> None:
    spectrum = score_spectrum("rotary pairs", "score", torch.zeros(2, 4), 2)
    assert spectrum.values == (0.0, 0.0, 0.0, 0.0)


@given(st.integers(1, 5000), st.data())
def test_few_ranks_are_stored_and_both_sides_of_the_cut_are_among_them(
    size: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, size))
    spectrum = score_spectrum("MLP neurons", "score", torch.rand(size), kept)
    assert len(spectrum.ranks) <= POINTS + 2
    assert spectrum.ranks == tuple(sorted(set(spectrum.ranks)))
    assert {0, size - 1, kept - 1, min(kept, size - 1)} <= set(spectrum.ranks)
    assert list(spectrum.values) == sorted(spectrum.values, reverse=True)
    assert 0.0 <= spectrum.kept_share <= 1.0 + 1e-9
