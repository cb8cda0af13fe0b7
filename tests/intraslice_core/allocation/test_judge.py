"""Plans are compared by paired divergences, with the standard error of their difference."""

from __future__ import annotations

import pytest
import torch

from intraslice_core.allocation.judge import MARGIN, WORST_SHARE, HeldOutDivergence, difference

KINDS = torch.tensor([0, 0, 0, 1])


def divergence(*means: float, noise: float = 0.0, seed: int = 0) -> HeldOutDivergence:
    """Return 4 times 128 positions with a mean for each sequence."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(means)[:, None] + noise * torch.randn(4, 128, generator=generator)
    return HeldOutDivergence(tokens=tokens, kinds=KINDS)


def test_the_score_is_the_mean_over_kinds_plus_a_share_of_the_worst():
    judged = divergence(1.0, 2.0, 3.0, 6.0)
    assert judged.by_kind().tolist() == [2.0, 6.0]
    assert judged.score == pytest.approx(4.0 + WORST_SHARE * 6.0)


def test_a_difference_is_that_of_the_scores_where_the_same_kind_is_worst():
    first, second = divergence(1.0, 2.0, 3.0, 6.0), divergence(1.0, 1.0, 1.0, 7.0)
    result = difference(first, second)
    assert result.value == pytest.approx(second.score - first.score)
    assert difference(second, first).value == pytest.approx(-result.value)


def test_noise_that_both_plans_share_does_not_count():
    shared = divergence(1.0, 1.0, 1.0, 1.0, noise=1.0)
    better = HeldOutDivergence(tokens=shared.tokens - 0.001, kinds=KINDS)
    assert difference(better, shared).favours_first
    assert not difference(shared, better).favours_first


def test_a_plan_is_better_only_beyond_two_standard_errors():
    judged = divergence(1.0, 1.0, 1.0, 1.0)
    noisy = divergence(0.99, 0.99, 0.99, 0.99, noise=1.0, seed=1)
    result = difference(noisy, judged)
    assert result.favours_first == (result.value > MARGIN * result.standard_error)
    assert not result.favours_first


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_standard_error_falls_with_the_root_of_the_tokens(repeats):
    base, other = divergence(1, 1, 1, 1), divergence(1, 1, 1, 1, noise=1.0)
    alone = difference(base, other).standard_error
    longer = [
        HeldOutDivergence(tokens=part.tokens.repeat(1, repeats), kinds=KINDS)
        for part in (base, other)
    ]
    assert difference(*longer).standard_error == pytest.approx(alone / repeats**0.5, rel=0.2)


def test_a_single_position_decides_nothing():
    few = [
        HeldOutDivergence(tokens=torch.full((1, 1), mean), kinds=torch.tensor([0]))
        for mean in (1, 9)
    ]
    assert not difference(*few).favours_first
