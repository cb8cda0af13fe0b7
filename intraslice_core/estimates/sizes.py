"""Parameters, bytes and memory of a compression, before and after."""

from __future__ import annotations

from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.config import CompressionConfig, EvaluationConfig, FrozenModel
from intraslice_core.estimates.memory import peak_memory
from intraslice_core.plan import (
    LayerPlan,
    ModelGeometry,
    dense_parameters,
    total_parameters,
)


class Estimate(FrozenModel):
    """What a job would make and take; the weights are exact, the memory is a formula's."""

    params_before: int
    params_after: int
    compressible_before: int
    compressible_after: int
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
        ConfigurationError: if rounding misses the budget.
    """
    dense = geometry.dense_plan()
    plan = uniform_plan(geometry, compression.ratio, compression.round_to)
    before, after = dense_parameters(geometry), total_parameters(geometry, plan)
    return Estimate(
        params_before=before,
        params_after=after,
        compressible_before=dense.parameters(geometry),
        compressible_after=plan.parameters(geometry),
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
