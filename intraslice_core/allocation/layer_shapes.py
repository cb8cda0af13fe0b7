"""Shapes of methods that remove whole decoder layers (docs/methods.md)."""

from __future__ import annotations

from torch import Tensor

from intraslice_core.allocation.budget import resolve_round_to
from intraslice_core.allocation.context import AllocationContext, Shapes, allocation_report
from intraslice_core.allocation.depth import depth_of, depth_plan
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.allocation.layer_removal import LayerRemovalSearch
from intraslice_core.allocation.unit_shapes import measured_activations, unit_scores
from intraslice_core.methods import METHODS
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
        activations = measured_activations(context, tokens)
        influences = [moments.influence for moments in activations]
        order = tuple(sorted(range(len(influences)), key=lambda layer: (influences[layer], layer)))
        scored = METHODS[context.config.method].units
        if depth.widths and scored is not None:
            units = unit_scores(context, activations, scored)
    else:
        # A further measurement ranks the layers whose MLPs are narrowed.
        order = _search(context, split).order(
            depth.removed + bool(depth.widths),
            lambda done: context.before_batch(done, "removing layers"),
        )
    return Shapes(
        plan=depth_plan(geometry, ratio, step, constraint, order),
        sensitivity=None,
        report=allocation_report(context.config.allocation, "whole_layers"),
        units=units,
    )


def _search(context: AllocationContext, split: CalibrationSplit) -> LayerRemovalSearch:
    return LayerRemovalSearch(
        layers=context.layers,
        tokens=split.judged,
        batch_size=context.config.batch_size,
        prefix_length=context.prefix_length,
    )
