"""Which heads go, against least squares without them."""

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
    """A second moment of correlated heads and the rows that read them."""
    generator = torch.Generator().manual_seed(seed)
    width = heads * WIDTH
    samples = torch.randn(300, width, generator=generator, dtype=torch.float64)
    mixed = samples @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    output = torch.randn(width, 4, generator=generator, dtype=torch.float64)
    return mixed.mT @ mixed / 300, output


def chosen(gram: Tensor, output: Tensor, heads: int, groups: int) -> HeadChoice:
    return eliminate_heads(linalg.damped_cholesky(gram, 1e-12), output, heads, groups)


def error_without(gram: Tensor, output: Tensor, kept: list[int]) -> float:
    """Of the best output projection that reads the kept heads only."""
    rows = torch.tensor([head * WIDTH + dim for head in kept for dim in range(WIDTH)])
    cross = gram[rows] @ output
    mended = torch.linalg.solve(gram[rows][:, rows], cross)
    return float((output * (gram @ output)).sum() - (cross * mended).sum())


@settings(max_examples=25, deadline=None)
@given(groups=st.integers(1, 4), size=st.integers(1, 4), seed=st.integers(0, 2**31), data=st.data())
def test_every_rectangle_costs_what_least_squares_leaves(
    groups: int, size: int, seed: int, data: st.DataObject
) -> None:
    gram, output = problem(groups * size, seed)
    found = chosen(gram, output, groups * size, groups)
    assert sorted(found.group_order.tolist()) == list(range(groups))
    assert found.query_order.sort(dim=-1).values.tolist() == [list(range(size))] * groups
    kept, queries = data.draw(st.integers(1, groups)), data.draw(st.integers(1, size))
    stay, within = kept_heads(found.group_order, found.query_order, kept, queries)
    assert (stay.diff() > 0).all()
    assert (within.diff(dim=-1) > 0).all()
    heads = (stay.unsqueeze(-1) * size + within).flatten().tolist()
    assert len(heads) == kept * queries
    wanted = error_without(gram, output, heads)
    assert float(found.cost[kept, queries]) == pytest.approx(
        wanted, rel=1e-5, abs=1e-6 * float((output * (gram @ output)).sum())
    )


@pytest.mark.parametrize("seed", range(5))
def test_first_group_and_first_query_head_are_those_that_are_missed_least(seed: int) -> None:
    gram, output = problem(6, seed)
    found = chosen(gram, output, 6, 3)
    groups = [[0, 1], [2, 3], [4, 5]]
    errors = [
        error_without(gram, output, [head for head in range(6) if head not in group])
        for group in groups
    ]
    assert int(found.group_order[0]) == errors.index(min(errors))
    single = chosen(gram, output, 6, 1)
    errors = [
        error_without(gram, output, [head for head in range(6) if head != gone])
        for gone in range(6)
    ]
    assert int(single.query_order[0, 0]) == errors.index(min(errors))


def test_more_heads_never_cost_more() -> None:
    gram, output = problem(12, 3)
    cost = chosen(gram, output, 12, 3).cost[1:, 1:]
    assert (cost.diff(dim=0) < 0).all()
    assert (cost.diff(dim=1) < 0).all()
    assert float(cost[-1, -1]) == 0.0


def test_shares_are_of_the_output_that_heads_explain_alone() -> None:
    gram, output = problem(6, 1)
    found = chosen(gram, output, 6, 3)
    each = []
    for head in range(6):
        rows = slice(head * WIDTH, (head + 1) * WIDTH)
        each.append(float((output[rows].mT @ gram[rows, rows] @ output[rows]).trace()))
    energies = head_energies(gram, output, 6)
    torch.testing.assert_close(energies, torch.tensor(each, dtype=torch.float64))
    shares = found.shares(energies)
    assert float(shares[-1, -1]) == 1.0
    for kept, queries in product((1, 2, 3), (1, 2)):
        stay, within = kept_heads(found.group_order, found.query_order, kept, queries)
        heads = (stay.unsqueeze(-1) * 2 + within).flatten().tolist()
        wanted = sum(each[head] for head in heads) / sum(each)
        assert float(shares[kept, queries]) == pytest.approx(wanted)
    assert (found.shares(torch.zeros(6, dtype=torch.float64)) == 1.0).all()
