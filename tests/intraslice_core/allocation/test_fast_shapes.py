"""Fast shapes are preferred within budget and target, and only if they cost little."""

from __future__ import annotations

from dataclasses import replace

import pytest

from intraslice_core.allocation.curves import ModelCurves, ScoredPlan
from intraslice_core.allocation.fast_shapes import (
    MAX_EXTRA_LOSS,
    equal_plan,
    fast_shapes,
    fast_shapes_report,
    prefer_fast_shapes,
)
from intraslice_core.allocation.lagrangian import lagrangian_plan
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.config import CompressionConfig
from intraslice_core.export.targets import DEMANDS
from intraslice_core.plan import FREE, ModelGeometry, ShapeConstraint
from tests.intraslice_core.allocation.instances import model_curves
from tests.intraslice_core.smollm2 import SMOLLM2

CONFIG = CompressionConfig(ratio=0.3)
BFLOAT16, FLOAT32 = 2, 4
NARROW = SMOLLM2.model_copy(update={"hidden_size": 64, "intermediate_size": 192, "head_dim": 16})
WIDE = SMOLLM2.model_copy(update={"hidden_size": 2048, "intermediate_size": 8192})


def multiples(geometry: ModelGeometry, item_bytes: int, **settings) -> list[int]:
    config = CONFIG.model_copy(update=settings)
    return [shapes.multiple for shapes in fast_shapes(config, geometry, item_bytes, FREE)]


@pytest.mark.parametrize(
    ("geometry", "item_bytes", "settings", "expected"),
    [
        (WIDE, BFLOAT16, {}, [64, 32, 16]),
        (WIDE, FLOAT32, {}, [32, 16]),
        (SMOLLM2, BFLOAT16, {}, [32, 16]),
        (WIDE, BFLOAT16, {"round_to": 32}, [64]),
        (WIDE, BFLOAT16, {"round_to": 24}, [192, 96, 48]),
        (WIDE, BFLOAT16, {"prefer_fast_shapes": False}, []),
        (NARROW, BFLOAT16, {}, []),
    ],
)
def test_rows_of_whole_blocks_are_preferred(geometry, item_bytes, settings, expected) -> None:
    assert multiples(geometry, item_bytes, **settings) == expected


def preferred(curves: ModelCurves, budget: int, constraint: ShapeConstraint) -> ScoredPlan:
    def allocate(allowed: ShapeConstraint) -> ScoredPlan:
        return lagrangian_plan(curves, budget, constraint=allowed)

    candidates = fast_shapes(CONFIG, SMOLLM2, BFLOAT16, constraint)
    return prefer_fast_shapes(allocate, constraint, candidates)


def scaled(curves: ModelCurves, factor: float) -> ModelCurves:
    """Return curves whose MLPs lose `factor` times as much."""
    return replace(
        curves,
        layers=tuple(
            replace(layer, widths=replace(layer.widths, losses=factor * layer.widths.losses))
            for layer in curves.layers
        ),
    )


@pytest.mark.parametrize("target", ["research", "adaptive"])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.45])
def test_cheap_fast_shapes_are_taken_within_budget_and_target(ratio: float, target) -> None:
    constraint = DEMANDS[target].shapes
    curves = scaled(model_curves(SMOLLM2, 8, seed=1, heads=False), 1e-5)
    budget = int((1 - ratio) * SMOLLM2.dense_plan().parameters(SMOLLM2))
    scored = preferred(curves, budget, constraint)
    plain = lagrangian_plan(curves, budget, constraint=constraint)
    widths = [layer.intermediate_size for layer in scored.plan.layers]
    assert all(width % 32 == 0 for width in widths)
    assert any(layer.intermediate_size % 32 for layer in plain.plan.layers)
    least = (1 - constraint.tolerance) * budget
    assert least <= scored.plan.parameters(SMOLLM2) <= budget
    assert scored.extra_loss == pytest.approx(scored.predicted_loss - plain.predicted_loss)
    assert scored.extra_loss <= MAX_EXTRA_LOSS
    heads = {(layer.qk_pairs, layer.v_head_dim) for layer in scored.plan.layers}
    assert target == "research" or heads == {(32, 64)}


def test_dear_fast_shapes_give_way_to_finer_ones_and_to_none() -> None:
    budget = int(0.7 * SMOLLM2.dense_plan().parameters(SMOLLM2))
    curves = model_curves(SMOLLM2, 8, seed=1, heads=False)
    candidates = list(fast_shapes(CONFIG, SMOLLM2, BFLOAT16, FREE))
    applied = []
    for factor in (1e-5, 1e-4, 1e-3, 1e-2, 1.0, 100.0):
        scored = preferred(scaled(curves, factor), budget, FREE)
        report = fast_shapes_report(scored.plan, SMOLLM2, iter(candidates), scored.extra_loss)
        assert report is not None
        applied.append(report.multiple)
        if report.multiple is None:
            plain = lagrangian_plan(scaled(curves, factor), budget)
            assert scored.plan == plain.plan
            assert report.extra_loss is None
    assert applied[0] == 32
    assert applied[-1] is None
    assert [size or 0 for size in applied] == sorted((size or 0 for size in applied), reverse=True)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("target", ["research", "adaptive", "stock"])
@pytest.mark.parametrize("geometry", [SMOLLM2, WIDE, NARROW])
def test_uniform_fast_shapes_use_the_same_budget(geometry, target, ratio: float) -> None:
    constraint = DEMANDS[target].shapes
    step = 8 if geometry is not NARROW else 2
    config = CONFIG.model_copy(update={"round_to": step})
    plain = uniform_plan(geometry, ratio, step, constraint)
    plan = equal_plan(config, geometry, ratio, BFLOAT16, constraint)
    budget = (1 - ratio) * geometry.dense_plan().parameters(geometry)
    limit = max(budget, plain.parameters(geometry))
    assert plan.parameters(geometry) <= limit
    assert plan == plain or plan.parameters(geometry) >= 0.999 * limit
    for layer, plain_layer in zip(plan.layers, plain.layers, strict=True):
        width = {"intermediate_size": plain_layer.intermediate_size}
        assert layer.model_copy(update=width) == plain_layer
    if geometry is SMOLLM2 and target == "research" and ratio == 0.3:
        assert all(layer.intermediate_size % 32 == 0 for layer in plan.layers)
        assert plan != plain
