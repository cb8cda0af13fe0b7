"""Joint elimination of rotary pairs and the query turn that compensates for it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.decoder_layer import Rotary
from intraslice_core.selection.rotary_pairs import (
    PAIR_DAMPING,
    eliminate_pairs,
    eliminate_shared_pairs,
    keep_shared_pairs,
    turned_queries,
)


def moment(heads: int, pairs: int, seed: int = 0) -> Tensor:
    features = torch.randn(
        heads, 2 * pairs, 6 * pairs, generator=torch.Generator().manual_seed(seed)
    ).double()
    return features @ features.mT


def remaining_error(gram: Tensor, kept: Tensor, turns: Tensor) -> Tensor:
    """Return `(c - 1)ᵀ Φ (c - 1)`, written out: coefficients of removed pairs are zero."""
    pairs = gram.shape[-1] // 2
    coefficients = torch.zeros(2 * pairs).double()
    coefficients[kept] = turns[:, 0]
    coefficients[kept + pairs] = turns[:, 1]
    dense = torch.cat((torch.ones(pairs), torch.zeros(pairs))).double()
    error = coefficients - dense
    damping = PAIR_DAMPING * gram.diagonal().mean()
    return error @ (gram + damping * torch.eye(2 * pairs).double()) @ error


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), pairs=st.integers(2, 7), data=st.data())
def test_cost_is_the_error_that_remains_when_the_kept_are_refitted(seed, pairs, data):
    keep = data.draw(st.integers(1, pairs))
    gram = moment(2, pairs, seed)
    choice = eliminate_pairs(gram, keep)
    assert choice.kept.shape == (2, keep)
    assert choice.turns.shape == (2, keep, 2)
    for head in range(2):
        error = remaining_error(gram[head], choice.kept[head], choice.turns[head])
        torch.testing.assert_close(choice.removal_cost[head].sum(), error, rtol=1e-6, atol=1e-9)


def test_turns_of_the_kept_pairs_have_the_least_error():
    gram = moment(1, 5)
    choice = eliminate_pairs(gram, 3)
    best = remaining_error(gram[0], choice.kept[0], choice.turns[0])
    for _ in range(20):
        other = choice.turns[0] + 0.1 * torch.randn_like(choice.turns[0])
        assert remaining_error(gram[0], choice.kept[0], other) >= best


def test_a_duplicate_pair_is_removed_at_no_cost():
    features = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(1)).double()
    features[:, 2], features[:, 6] = features[:, 1], features[:, 5]  # pair 2 is pair 1 again
    choice = eliminate_pairs(features @ features.mT, 3)
    removed = ({0, 1, 2, 3} - set(choice.kept[0].tolist())).pop()
    assert removed in {1, 2}
    position = choice.kept[0].tolist().index(3 - removed)
    torch.testing.assert_close(
        choice.turns[0, position], torch.tensor([2.0, 0.0]).double(), atol=1e-2, rtol=0
    )


def test_keeping_all_changes_nothing():
    choice = eliminate_pairs(moment(3, 4), 4)
    assert choice.kept.tolist() == [[0, 1, 2, 3]] * 3
    assert choice.turns.tolist() == [[[1.0, 0.0]] * 4] * 3
    assert choice.removal_cost.shape == (3, 0)


def test_turned_queries_give_real_and_imaginary_parts_of_the_scores():
    groups, group, keep, hidden, length = 2, 3, 2, 5, 4
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(groups * group * 2 * keep, hidden, generator=generator).double()
    turns = torch.randn(groups, keep, 2, generator=generator).double()
    inputs = torch.randn(length, hidden, generator=generator).double()
    keys = torch.randn(1, groups, length, 2 * keep, generator=generator).double()
    angles = torch.rand(length, keep, generator=generator).double()
    rotary = Rotary(cos=angles.cos().repeat(1, 2), sin=angles.sin().repeat(1, 2))

    def heads(weight: Tensor) -> Tensor:
        projected = (inputs @ weight.mT).view(1, length, groups * group, 2 * keep)
        return rotary.rotate(projected.transpose(1, 2))[0]

    query, key = heads(rows), rotary.rotate(keys)[0].repeat_interleave(group, 0)
    scores = heads(turned_queries(rows, turns)) @ key.mT
    (q1, q2), (k1, k2) = query.chunk(2, -1), key.chunk(2, -1)
    real = torch.einsum("hqp,hkp->hqkp", q1, k1) + torch.einsum("hqp,hkp->hqkp", q2, k2)
    imaginary = torch.einsum("hqp,hkp->hqkp", q1, k2) - torch.einsum("hqp,hkp->hqkp", q2, k1)
    per_head = turns.repeat_interleave(group, 0)[:, None, None]
    expected = (real * per_head[..., 0] + imaginary * per_head[..., 1]).sum(-1)
    torch.testing.assert_close(scores, expected)


def test_the_gram_matrix_is_damped_before_it_is_inverted():
    gram = torch.zeros(1, 4, 4).double()
    gram[0, 0, 0] = 1.0
    assert eliminate_pairs(gram, 1).kept.tolist() == [[0]]
    assert linalg.damped_cholesky(gram, PAIR_DAMPING).damping == PAIR_DAMPING


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), pairs=st.integers(2, 7), data=st.data())
def test_shared_elimination_of_a_single_head_is_the_free_one(seed, pairs, data):
    keep = data.draw(st.integers(1, pairs))
    gram = moment(1, pairs, seed)
    free, shared = eliminate_pairs(gram, keep), eliminate_shared_pairs(gram)
    kept_pairs = shared.order[pairs - keep :].sort().values
    assert torch.equal(kept_pairs, free.kept[0])
    torch.testing.assert_close(shared.removal_cost[:, : pairs - keep], free.removal_cost)
    choice = keep_shared_pairs(gram, kept_pairs)
    assert torch.equal(choice.kept, free.kept)
    torch.testing.assert_close(choice.turns, free.turns)


def test_shared_elimination_removes_the_pairs_of_least_total_cost():
    gram = moment(3, 5)
    shared = eliminate_shared_pairs(gram)
    assert sorted(shared.order.tolist()) == list(range(5))
    kept_pairs = shared.order[2:].sort().values
    choice = keep_shared_pairs(gram, kept_pairs)
    for head in range(3):
        error = remaining_error(gram[head], kept_pairs, choice.turns[head])
        torch.testing.assert_close(shared.removal_cost[head, :2].sum(), error)
    choices = [
        keep_shared_pairs(gram, torch.tensor([p for p in range(5) if p != pair]))
        for pair in range(5)
    ]
    costs = [
        sum(
            float(remaining_error(gram[head], choice.kept[head], choice.turns[head]))
            for head in range(3)
        )
        for choice in choices
    ]
    assert costs.index(min(costs)) == int(shared.order[0])
    torch.testing.assert_close(float(shared.removal_cost[:, 0].sum()), min(costs))
