"""From an allocator's answer to what the report says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intraslice_core.config import Allocation, Allocator
from intraslice_core.reports.schema import AllocationReport, LayerPrediction, LossWeighting

if TYPE_CHECKING:
    from intraslice_core.allocation.priced_plan import PricedPlan


def allocation_report(
    requested: Allocation,
    allocator: Allocator,
    priced: PricedPlan | None = None,
    *,
    weighting: LossWeighting | None = None,
    calibration_loss: float | None = None,
    uniform_calibration_loss: float | None = None,
    fallback_reason: str | None = None,
) -> AllocationReport:
    """What is told of the choice of shapes.

    Args:
        requested: as the settings have it.
        allocator: whose shapes were taken.
        priced: its answer; None where it predicts nothing.
        weighting: what turned output errors into loss.
        calibration_loss: of the model with the shapes that were found, before any fall back.
        uniform_calibration_loss: of the model with equal layers at the same size.
        fallback_reason: why `allocator` is not the one that was asked for.
    """
    layers: tuple[LayerPrediction, ...] = ()
    if priced is not None:
        layers = tuple(
            LayerPrediction(layer=layer, attention=price.attention, mlp=price.mlp)
            for layer, price in enumerate(priced.prices)
        )
    return AllocationReport(
        requested=requested,
        allocator=allocator,
        fell_back=fallback_reason is not None,
        fallback_reason=fallback_reason,
        weighting=weighting,
        calibration_loss=calibration_loss,
        uniform_calibration_loss=uniform_calibration_loss,
        predicted_loss=priced.predicted_loss if priced is not None else None,
        layers=layers,
    )
