"""Numbers of whole layers, and MLP widths that make up for the rest of a budget."""

from __future__ import annotations

import pytest

from intraslice_core.allocation.budget import compression_budget
from intraslice_core.allocation.depth import Depth, depth_of, depth_plan
from intraslice_core.allocation.rounding import require_rounding
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.export.targets import DEMANDS
from intraslice_core.plan import FREE
from tests.intraslice_core.smollm2 import SMOLLM2

STOCK = DEMANDS["stock"].shapes
LAYER = SMOLLM2.dense_layer().parameters(SMOLLM2)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.2, 0.25, 0.3, 0.37, 0.5, 0.96])
@pytest.mark.parametrize("round_to", [1, 8, 64])
def test_any_budget_is_met_within_one_step_of_one_mlp(ratio: float, round_to: int) -> None:
    plan = depth_plan(SMOLLM2, ratio, round_to, FREE) if ratio < 0.9 or round_to < 64 else None
    if plan is None:
        return
    budget = (1.0 - ratio) * 30 * LAYER
    assert abs(plan.parameters(SMOLLM2) - budget) <= 3 * 576 * round_to
    changed = [layer for layer in plan.result_layers if layer != SMOLLM2.dense_layer()]
    assert len(changed) <= 2
    assert all(layer.intermediate_size % round_to == 0 for layer in changed)
    assert len(plan.remaining) == 30 - int(ratio * 30 + 1e-9)


def test_layers_go_in_the_order_and_the_next_one_is_narrowed() -> None:
    plan = depth_plan(SMOLLM2, 0.12, 8, FREE, order=(7, 3, 20, 11, 0))
    assert [number for number in range(30) if number not in plan.remaining] == [3, 7, 20]
    dense = SMOLLM2.dense_layer()
    assert [number for number in plan.remaining if plan.layers[number] != dense] == [11]
    assert plan.output_layers[1:4] == (1, 3, 4)  # that of layer 2 stands for layer 3's, too
    assert plan.output_layers[-1] == 29


def test_a_second_mlp_is_narrowed_where_the_rest_exceeds_the_first() -> None:
    depth = depth_of(SMOLLM2, 0.165, 8, FREE)  # 4.95 layers; an MLP is three quarters of one
    assert depth.removed == 4
    assert depth.widths[0] == 8
    assert 8 < depth.widths[1] < SMOLLM2.intermediate_size


@pytest.mark.parametrize(
    ("ratio", "removed"), [(0.0, 0), (0.2, 6), (0.205, 6), (1 / 30, 1), (0.3, 9), (29 / 30, 29)]
)
def test_stock_takes_the_nearest_number_of_layers(ratio: float, removed: int) -> None:
    assert depth_of(SMOLLM2, ratio, 8, STOCK) == Depth(removed=removed)
    assert len(depth_plan(SMOLLM2, ratio, 8, STOCK).remaining) == 30 - removed


@pytest.mark.parametrize(
    ("ratio", "reachable"),
    [
        (0.01, "0.0333 (1 layer), or"),
        (0.25, "0.2333 (7 layers), a ratio of 0.2667 (8 layers), or"),
        (0.99, "0.9667 (29 layers), or"),
    ],
)
def test_stock_names_reachable_ratios(ratio: float, reachable: str) -> None:
    config = CompressionConfig(method="shortgpt", target="stock", ratio=ratio)
    budget = compression_budget(config, SMOLLM2, 2)
    with pytest.raises(BudgetOutOfReachError, match="removes whole ones only") as caught:
        require_rounding(config, SMOLLM2, budget, STOCK)
    assert caught.value.field == "compression.ratio"
    assert reachable in str(caught.value.hint)


def test_a_budget_below_one_layer_names_the_largest_ratio() -> None:
    with pytest.raises(BudgetOutOfReachError, match="a model of one layer") as caught:
        depth_of(SMOLLM2, 0.995, 8, FREE)
    assert "ratio of at most 0.99" in str(caught.value.hint)
    largest = float(str(caught.value.hint).rsplit(" ", 1)[1])
    assert depth_of(SMOLLM2, largest, 8, FREE).removed == 29
