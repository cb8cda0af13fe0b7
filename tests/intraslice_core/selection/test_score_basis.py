"""Basis of queries and keys in layers without RoPE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intraslice_core.selection.score_basis import leading_score_basis, score_directions

GROUPS, WIDTH = 2, 6


def moments(seed: int = 0, rank: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Return second moments of queries and of key effects, of equal trace."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(GROUPS, WIDTH, 9, generator=generator, dtype=torch.float64)
    left, right = torch.randn(2, GROUPS, WIDTH, rank, generator=generator, dtype=torch.float64)
    key = left @ right.mT[..., :9] if rank < WIDTH else left * 2
    query, key = query @ query.mT, key @ key.mT
    traces = query.diagonal(dim1=-2, dim2=-1).sum(-1) / key.diagonal(dim1=-2, dim2=-1).sum(-1)
    return query, key * traces[:, None, None]


def error(query: Tensor, key: Tensor, product: Tensor) -> Tensor:
    """Return `tr(S (I - M) T (I - M)ᵀ) / tr S` for `M = A Bᵀ`, written out."""
    rest = torch.eye(WIDTH, dtype=query.dtype) - product
    squared = (query @ rest @ key @ rest.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return squared / query.diagonal(dim1=-2, dim2=-1).sum(-1)


@pytest.mark.parametrize("keep", [1, 3, 5, 6])
def test_predicted_error_is_that_of_the_basis(keep: int) -> None:
    query, key = moments()
    directions = score_directions(query, key)
    basis = leading_score_basis(directions.query, directions.key, keep)
    assert basis.query.shape == basis.key.shape == (GROUPS, WIDTH, keep)
    actual = error(query, key, basis.query @ basis.key.mT)
    predicted = directions.spectrum[:, keep:].sum(-1)
    torch.testing.assert_close(actual, predicted, rtol=0.02, atol=1e-10)


@pytest.mark.parametrize("keep", [2, 4])
def test_no_other_factors_of_this_rank_have_less_error(keep: int) -> None:
    query, key = moments()
    directions = score_directions(query, key)
    basis = leading_score_basis(directions.query, directions.key, keep)
    best = error(query, key, basis.query @ basis.key.mT)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        changes = 0.05 * torch.randn(2, GROUPS, WIDTH, keep, generator=generator).double()
        other = (basis.query + changes[0]) @ (basis.key + changes[1]).mT
        assert (error(query, key, other) > best * (1 - 1e-3)).all()
    selection = torch.zeros(WIDTH, dtype=torch.float64)
    for dimensions in torch.combinations(torch.arange(WIDTH), keep):
        selected = selection.index_fill(0, dimensions, 1.0).diag()
        assert (error(query, key, selected) > best).all()


def test_keys_of_low_rank_lose_nothing() -> None:
    query, key = moments(rank=3)
    directions = score_directions(query, key)
    basis = leading_score_basis(directions.query, directions.key, 3)
    lost = error(query, key, basis.query @ basis.key.mT)
    torch.testing.assert_close(lost, torch.zeros_like(lost), rtol=0, atol=1e-10)


def test_all_directions_are_the_identity_and_keys_keep_their_length() -> None:
    directions = score_directions(*moments())
    basis = leading_score_basis(directions.query, directions.key, WIDTH)
    identity = torch.eye(WIDTH, dtype=torch.float64).expand(GROUPS, -1, -1)
    torch.testing.assert_close(basis.query @ basis.key.mT, identity)
    torch.testing.assert_close(basis.key.mT @ basis.key, identity)


def test_scores_without_effect_have_no_spectrum() -> None:
    zero = torch.zeros(1, WIDTH, WIDTH)
    directions = score_directions(zero, zero)
    assert directions.spectrum.tolist() == [[0.0] * WIDTH]
