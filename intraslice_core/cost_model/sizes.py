"""Parameters, bytes and memory of a compression, before and after."""

from __future__ import annotations

from intraslice_core.allocation.budget import compression_budget
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.config import CompressionConfig, EvaluationConfig, FrozenModel
from intraslice_core.cost_model.memory import peak_memory
from intraslice_core.export.targets import DEMANDS
from intraslice_core.plan import LayerPlan, ModelGeometry, dense_parameters, total_parameters


class Estimate(FrozenModel):
    """What a job would make and take.

    The weights are those of equal layers. Other allocations differ from it by single rounding
    steps in size; which shapes they choose, only the calibration tells. Memory is a formula's.
    """

    params_before: int
    params_after: int
    compressible_before: int
    compressible_after: int
    achieved_ratio: float
    """Fraction of the compressible parameters that is gone."""
    bytes_before: int
    bytes_after: int
    peak_memory_bytes: int
    first_layer: LayerPlan


def estimate(
    geometry: ModelGeometry,
    item_bytes: int,
    compression: CompressionConfig,
    evaluation: EvaluationConfig | None,
) -> Estimate:
    """Plan the compression without running it.

    Args:
        geometry: of the dense model.
        item_bytes: of a stored weight.
        compression: what is asked for.
        evaluation: what is measured, if anything.

    Raises:
        BudgetOutOfReachError: if no shapes have the size asked for.
        ConfigurationError: if rounding misses the budget.
    """
    dense = geometry.dense_plan()
    budget = compression_budget(compression, geometry, item_bytes)
    shapes = DEMANDS[compression.target].shapes
    plan = uniform_plan(geometry, budget.ratio, compression.round_to, shapes)
    before, after = dense_parameters(geometry), total_parameters(geometry, plan)
    return Estimate(
        params_before=before,
        params_after=after,
        compressible_before=dense.parameters(geometry),
        compressible_after=plan.parameters(geometry),
        achieved_ratio=plan.removed_fraction(geometry),
        bytes_before=before * item_bytes,
        bytes_after=after * item_bytes,
        peak_memory_bytes=peak_memory(
            geometry,
            params_before=before,
            params_after=after,
            item_bytes=item_bytes,
            compression=compression,
            evaluation=evaluation,
        ),
        first_layer=plan.layers[0],
    )
