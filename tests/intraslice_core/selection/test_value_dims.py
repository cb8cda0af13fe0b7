"""Elimination of value dimensions against least squares solved anew for every candidate."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.selection.value_dims import eliminate_value_dims

DAMPING = 1e-3


def problem(heads: int, head_dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a moment of correlated inputs and an output projection by rows, float64."""
    generator = torch.Generator().manual_seed(seed)
    width = heads * head_dim
    rows = torch.randn(200, width, generator=generator, dtype=torch.float64)
    rows = rows @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    output = torch.randn(width, 5, generator=generator, dtype=torch.float64)
    return rows.T @ rows / len(rows), output


def damped(moment: Tensor) -> Tensor:
    return moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment)).double()


def least_error(moment: Tensor, output: Tensor, subset: list[int]) -> float:
    """Return the least squared error of the output by a new projection of some inputs."""
    whole = float((output * (moment @ output)).sum())
    if not subset:
        return whole
    cross = moment[subset] @ output
    return whole - float((cross * torch.linalg.solve(moment[subset][:, subset], cross)).sum())


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (3, 3), (2, 1)])
def test_each_group_loses_the_dimension_that_the_others_replace_best(
    heads: int, groups: int
) -> None:
    head_dim, size = 5, heads // groups
    moment, output = problem(heads, head_dim)
    choice = eliminate_value_dims(linalg.damped_cholesky(moment, DAMPING), output, heads, groups)
    moment = damped(moment)
    remaining = {(group, dim) for group, dim in product(range(groups), range(head_dim))}

    def inputs(units: set[tuple[int, int]]) -> list[int]:
        return sorted(
            (group * size + query) * head_dim + dim for group, dim in units for query in range(size)
        )

    error = 0.0
    for step in range(head_dim):
        removed = set()
        for group in range(groups):
            own = sorted(dim for other, dim in remaining if other == group)
            errors = [
                least_error(moment, output, inputs(remaining - {(group, dim)})) for dim in own
            ]
            best = own[errors.index(min(errors))]
            assert int(choice.order[group, step]) == best
            removed.add((group, best))
        remaining -= removed
        after = least_error(moment, output, inputs(remaining))
        assert float(choice.cost[step]) == pytest.approx(after - error, rel=1e-8)
        error = after
    assert remaining == set()


def test_a_dimension_that_repeats_others_goes_first() -> None:
    moment, output = problem(2, 6)
    mixing = torch.eye(12, dtype=torch.float64)
    for head in range(2):  # dimension 3 of both heads is a mix of dimensions 0 and 1
        mixing[6 * head + 3] = 0.0
        mixing[6 * head + 3, 6 * head] = 0.7
        mixing[6 * head + 3, 6 * head + 1] = -1.3
    moment = mixing @ moment @ mixing.T
    choice = eliminate_value_dims(linalg.damped_cholesky(moment, 1e-9), output, 2, 1)
    assert int(choice.order[0, 0]) in (0, 1, 3)
    assert float(choice.cost[0]) < 1e-5 * float(choice.cost.sum())
    assert float(choice.cost[1]) > 1e-4 * float(choice.cost.sum())
