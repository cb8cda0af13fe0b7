"""Estimated parameters, bytes and peak memory of a compression."""

from __future__ import annotations

from intraslice_core.allocation.budget import compression_budget, resolve_round_to
from intraslice_core.allocation.fast_shapes import equal_plan
from intraslice_core.allocation.rounding import require_rounding
from intraslice_core.config import CompressionConfig, EvaluationConfig, FrozenModel
from intraslice_core.cost_model.memory import peak_memory
from intraslice_core.export.targets import demands_on
from intraslice_core.methods import adds_output_biases
from intraslice_core.plan import LayerPlan, ModelGeometry, dense_parameters, total_parameters


class Estimate(FrozenModel):
    """Estimated result and memory of a job.

    Sizes are computed for the allocation `uniform`. Other allocations differ in size by single
    rounding steps; their shapes depend on the calibration. Memory is computed by a formula.
    """

    params_before: int
    params_after: int
    compressible_before: int
    compressible_after: int
    achieved_ratio: float
    """Removed fraction of the compressible parameters."""
    bytes_before: int
    bytes_after: int
    peak_memory_bytes: int
    least_memory_bytes: int
    """Peak memory with second moments factorised in place, as where memory is short."""
    first_layer: LayerPlan
    layers_after: int
    """Decoder layers of the result; fewer than the dense model's for methods that remove some."""
    round_to: int
    """Number that dimensions are multiples of, as requested or selected for the model."""


def estimate(
    geometry: ModelGeometry,
    item_bytes: int,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
    model_type: str | None = None,
) -> Estimate:
    """Estimate a compression without running it.

    Args:
        geometry: dimensions of the dense model.
        item_bytes: bytes per stored weight.
        compression: settings of the compression.
        evaluation: settings of the evaluation; None without one.
        model_type: of the dense model, on which the target's constraints depend; None for any.

    Raises:
        BudgetOutOfReachError: if no shapes have the requested size.
        ConfigurationError: if rounding misses the budget.
    """
    dense = geometry.dense_plan()
    budget = compression_budget(compression, geometry, item_bytes)
    shapes = demands_on(compression, model_type).shapes
    require_rounding(compression, geometry, budget, shapes)
    round_to = resolve_round_to(compression, geometry)
    plan = equal_plan(compression, geometry, budget.ratio, item_bytes, shapes)
    result = geometry.with_output_biases() if adds_output_biases(compression) else geometry
    before, after = dense_parameters(geometry), total_parameters(result, plan)
    peaks = [
        peak_memory(
            geometry,
            params_before=before,
            params_after=after,
            item_bytes=item_bytes,
            compression=compression,
            evaluation=evaluation,
            in_place=in_place,
        )
        for in_place in (False, True)
    ]
    return Estimate(
        params_before=before,
        params_after=after,
        compressible_before=dense.parameters(geometry),
        compressible_after=plan.parameters(geometry),
        achieved_ratio=plan.removed_fraction(geometry),
        bytes_before=before * item_bytes,
        bytes_after=after * item_bytes,
        peak_memory_bytes=peaks[0],
        least_memory_bytes=peaks[1],
        first_layer=plan.result_layers[0],
        layers_after=len(plan.remaining),
        round_to=round_to,
    )
