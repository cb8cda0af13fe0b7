"""Shapes of methods that remove whole decoder layers (docs/methods.md)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from intraslice_core.allocation.budget import resolve_round_to
from intraslice_core.allocation.context import AllocationContext, Shapes, allocation_report
from intraslice_core.allocation.depth import depth_of, depth_plan
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.allocation.influence_shapes import block_influences
from intraslice_core.allocation.layer_removal import (
    LayerRemovalSearch,
    load_order,
    save_order,
)
from intraslice_core.allocation.unit_shapes import unit_scores
from intraslice_core.calibration import calibration_hash
from intraslice_core.methods import METHODS
from intraslice_core.ranks import MAIN
from intraslice_core.unit_removal import LayerUnits


def layer_shapes(context: AllocationContext, tokens: Tensor, split: CalibrationSplit) -> Shapes:
    """Measure the layers' influence and remove the least influential ones.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.
        split: the same by use.

    Raises:
        BudgetOutOfReachError: if no layers can be removed so that the budget is met.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
        NumericalError: naming the layer.
    """
    removal = METHODS[context.config.method].layers
    assert removal is not None
    geometry, ratio = context.geometry, context.budget.ratio
    if ratio == 0.0:
        report = allocation_report(context.config.allocation, "uniform")
        return Shapes(plan=geometry.dense_plan(), sensitivity=None, report=report)
    step, constraint = resolve_round_to(context.config, geometry), context.demands.shapes
    depth = depth_of(geometry, ratio, step, constraint)
    units: tuple[LayerUnits, ...] | None = None
    if removal.influence == "layer":
        scored = METHODS[context.config.method].units if depth.widths else None
        influences = block_influences(context, tokens, 1.0 if scored is None else 0.5)
        order = tuple(sorted(range(len(influences)), key=lambda layer: (influences[layer], layer)))
        if scored is not None:
            units = unit_scores(context, tokens, scored, 0.5, 0.5)
    else:
        order = _order_of_removal(context, split, depth.changed)
    return Shapes(
        plan=depth_plan(geometry, ratio, step, constraint, order),
        sensitivity=None,
        report=allocation_report(context.config.allocation, "whole_layers"),
        units=units,
    )


def _order_of_removal(
    context: AllocationContext, split: CalibrationSplit, count: int
) -> tuple[int, ...]:
    """Return the layers that are removed or narrowed, in order, (count,).

    An order serves all ratios and is cached after each step: a shorter one is its beginning.
    """
    cache, ranks = context.cache, context.layers.ranks
    key = context.key(
        layer_order=calibration_hash(split.judged),
        prefix_length=context.prefix_length,
        batch_size=context.config.batch_size,
    )
    beginning = ranks.computed(
        MAIN, lambda: () if cache is None else load_order(cache.directory, key)
    )

    def save(removed: tuple[int, ...]) -> None:
        if cache is not None and cache.has_room(8 * len(removed)):
            cache.on_saved(save_order(cache.directory, key, removed))

    def with_batch(size: int) -> tuple[int, ...]:
        search = LayerRemovalSearch(
            layers=context.layers,
            tokens=split.judged,
            batch_size=size,
            prefix_length=context.prefix_length,
        )
        report = partial(_report, context)
        return search.order(count, report, beginning=beginning, on_step=save)

    return context.batch.repeat(with_batch)


def _report(context: AllocationContext, done: float) -> None:
    context.before_batch(done, "removing layers")
