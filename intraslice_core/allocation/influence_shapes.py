"""Shapes by the block influence of the layers (MoDeGPT; docs/methods.md)."""

from __future__ import annotations

from torch import Tensor

from intraslice_core.allocation.budget import resolve_round_to
from intraslice_core.allocation.context import AllocationContext, Shapes, allocation_report
from intraslice_core.allocation.layer_ratios import influence_plan
from intraslice_core.calibration import calibration_hash
from intraslice_core.ranks import MAIN
from intraslice_core.sensitivity.block_influence import (
    load_block_influence,
    measure_block_influence,
    save_block_influence,
)

_BYTES_PER_LAYER = 8


def influence_shapes(context: AllocationContext, tokens: Tensor) -> Shapes:
    """Measure the block influence of all layers and allocate.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.

    Raises:
        BudgetOutOfReachError: if the smallest allowed layers exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
        NumericalError: naming the layer.
    """
    plan = influence_plan(
        context.geometry,
        block_influences(context, tokens),
        context.budget.ratio,
        resolve_round_to(context.config, context.geometry),
        context.demands.shapes,
        context.config.module_cap,
    )
    report = allocation_report(context.config.allocation, "block_influence")
    return Shapes(plan=plan, sensitivity=None, report=report)


def block_influences(
    context: AllocationContext, tokens: Tensor, share: float = 1.0
) -> tuple[float, ...]:
    """Load the layers' influences from the cache, or measure and cache them.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.
        share: share of the stage's time that the pass takes.

    Raises:
        NumericalError: naming the layer.
    """
    cache = context.cache
    key = context.key(
        influence=calibration_hash(tokens),
        prefix_length=context.prefix_length,
        batch_size=context.config.batch_size,
    )
    name = f"influence-{key[:32]}.safetensors"
    cached = context.layers.ranks.computed(
        MAIN, lambda: None if cache is None else load_block_influence(cache.directory / name)
    )
    if cached is not None:
        return cached
    measured = context.batch.repeat(
        lambda size: measure_block_influence(
            context.layers,
            tokens,
            batch_size=size,
            before_batch=context.before_layers("measuring the influence of layers", share=share),
            prefix_length=context.prefix_length,
        )
    )
    if cache is not None and cache.has_room(_BYTES_PER_LAYER * len(measured)):
        save_block_influence(cache.directory / name, measured)
        cache.on_saved(name)
    return measured
