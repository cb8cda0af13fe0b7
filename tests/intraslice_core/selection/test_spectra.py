"""What a report draws of a choice: shares by rank, with both sides of the cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intraslice_core.selection.spectra import POINTS, by_losses, by_scores


def test_heads_are_ordered_each_by_itself_and_added_up() -> None:
    scores = torch.tensor([[1.0, 3.0, 0.0], [0.0, 2.0, 4.0]])
    found = by_scores("value dims", "eigenvalue", scores, 1)
    assert found.ranks == (0, 1, 2)
    assert found.values == pytest.approx((0.7, 0.3, 0.0))
    assert found.kept_share == pytest.approx(0.7)


def test_losses_by_what_is_kept_become_those_of_each_next_removal() -> None:
    losses = torch.tensor([torch.inf, 3.0, 1.0, 0.0], dtype=torch.float64)
    found = by_losses("MLP neurons", losses, 2)
    assert found.measure == "loss"
    assert found.values == pytest.approx((0.4, 0.4, 0.2))
    assert (found.size, found.kept) == (3, 2)
    assert found.kept_share == pytest.approx(0.8)


def test_what_is_worth_nothing_has_no_shares() -> None:
    found = by_scores("rotary pairs", "score", torch.zeros(2, 4), 2)
    assert found.values == (0.0, 0.0, 0.0, 0.0)


@given(st.integers(1, 5000), st.data())
def test_few_ranks_are_kept_and_both_sides_of_the_cut_are_among_them(
    size: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, size))
    found = by_scores("MLP neurons", "score", torch.rand(size), kept)
    assert len(found.ranks) <= POINTS + 2
    assert found.ranks == tuple(sorted(set(found.ranks)))
    assert {0, size - 1, kept - 1, min(kept, size - 1)} <= set(found.ranks)
    assert all(one >= two for one, two in zip(found.values, found.values[1:], strict=False))
    assert 0.0 <= found.kept_share <= 1.0 + 1e-9
