"""Costs and order of removed heads, compared with least squares without them."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.selection.heads import HeadChoice, eliminate_heads, head_energies, kept_heads

WIDTH = 3


def problem(heads: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a second moment of correlated heads and an output projection by rows of heads."""
    generator = torch.Generator().manual_seed(seed)
    width = heads * WIDTH
    samples = torch.randn(300, width, generator=generator, dtype=torch.float64)
    mixed = samples @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    output = torch.randn(width, 4, generator=generator, dtype=torch.float64)
    return mixed.mT @ mixed / 300, output


def chosen(gram: Tensor, output: Tensor, heads: int, groups: int) -> HeadChoice:
    return eliminate_heads(linalg.damped_cholesky(gram, 1e-12), output, heads, groups)


def error_without(gram: Tensor, output: Tensor, kept: list[int]) -> float:
    """Return the error of the best output projection that reads the kept heads only."""
    rows = torch.tensor([head * WIDTH + dim for head in kept for dim in range(WIDTH)])
    cross = gram[rows] @ output
    refitted = torch.linalg.solve(gram[rows][:, rows], cross)
    return float((output * (gram @ output)).sum() - (cross * refitted).sum())


@settings(max_examples=25, deadline=None)
@given(groups=st.integers(1, 4), size=st.integers(1, 4), seed=st.integers(0, 2**31), data=st.data())
def test_every_rectangle_costs_what_least_squares_leaves(
    groups: int, size: int, seed: int, data: st.DataObject
) -> None:
    gram, output = problem(groups * size, seed)
    choice = chosen(gram, output, groups * size, groups)
    assert sorted(choice.group_order.tolist()) == list(range(groups))
    assert choice.query_order.sort(dim=-1).values.tolist() == [list(range(size))] * groups
    keep, queries = data.draw(st.integers(1, groups)), data.draw(st.integers(1, size))
    kept_groups, within = kept_heads(choice.group_order, choice.query_order, keep, queries)
    assert (kept_groups.diff() > 0).all()
    assert (within.diff(dim=-1) > 0).all()
    heads = (kept_groups.unsqueeze(-1) * size + within).flatten().tolist()
    assert len(heads) == keep * queries
    expected = error_without(gram, output, heads)
    assert float(choice.cost[keep, queries]) == pytest.approx(
        expected, rel=1e-5, abs=1e-6 * float((output * (gram @ output)).sum())
    )


@pytest.mark.parametrize("seed", range(5))
def test_first_removed_group_and_query_head_are_those_of_least_error(seed: int) -> None:
    gram, output = problem(6, seed)
    choice = chosen(gram, output, 6, 3)
    groups = [[0, 1], [2, 3], [4, 5]]
    errors = [
        error_without(gram, output, [head for head in range(6) if head not in group])
        for group in groups
    ]
    assert int(choice.group_order[0]) == errors.index(min(errors))
    single = chosen(gram, output, 6, 1)
    errors = [
        error_without(gram, output, [head for head in range(6) if head != removed])
        for removed in range(6)
    ]
    assert int(single.query_order[0, 0]) == errors.index(min(errors))


def test_more_heads_never_cost_more() -> None:
    gram, output = problem(12, 3)
    cost = chosen(gram, output, 12, 3).cost[1:, 1:]
    assert (cost.diff(dim=0) < 0).all()
    assert (cost.diff(dim=1) < 0).all()
    assert float(cost[-1, -1]) == 0.0


def test_shares_are_of_the_heads_own_output_energies() -> None:
    gram, output = problem(6, 1)
    choice = chosen(gram, output, 6, 3)
    naive = []
    for head in range(6):
        rows = slice(head * WIDTH, (head + 1) * WIDTH)
        naive.append(float((output[rows].mT @ gram[rows, rows] @ output[rows]).trace()))
    energies = head_energies(gram, output, 6)
    torch.testing.assert_close(energies, torch.tensor(naive, dtype=torch.float64))
    shares = choice.shares(energies)
    assert float(shares[-1, -1]) == 1.0
    for keep, queries in product((1, 2, 3), (1, 2)):
        kept_groups, within = kept_heads(choice.group_order, choice.query_order, keep, queries)
        heads = (kept_groups.unsqueeze(-1) * 2 + within).flatten().tolist()
        expected = sum(naive[head] for head in heads) / sum(naive)
        assert float(shares[keep, queries]) == pytest.approx(expected)
    assert (choice.shares(torch.zeros(6, dtype=torch.float64)) == 1.0).all()
