"""Inputs and result of the choice of shapes, and its section of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from intraslice_core.allocation.budget import Budget
from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.config import Allocation, Allocator, CompressionConfig
from intraslice_core.device_memory import BatchSize
from intraslice_core.export.targets import TargetDemands
from intraslice_core.plan import ModelGeometry, ModelPlan
from intraslice_core.reports.schema import AllocationReport, LayerPrediction, LossWeighting
from intraslice_core.resume_state import ResumeState
from intraslice_core.selection.residual_parts import ResidualPartSelections
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.unit_removal import LayerUnits

_ROUNDING = 1e-6
"""Rounding error of a finished fraction, in layers."""


class ContentKey(Protocol):
    """Key of cached content, derived from everything the content depends on."""

    def __call__(self, **facts: object) -> str:
        """Return a digest of the run's inputs and `facts`."""


class BeforeBatch(Protocol):
    """Callback of the allocation before each of its batches; may raise to stop."""

    def __call__(self, done: float, message: str, layer: int | None = None, /) -> None:
        """Report the stage's finished fraction, the activity, and its layer if it has one."""


def ignore_resumed(_begin: float, _end: float) -> None:
    """Do nothing about a restored part of the stage."""


def ignore_warning(_warning: str) -> None:
    """Do nothing about a warning."""


@dataclass(frozen=True, kw_only=True)
class SensitivityCache:
    """Directory that caches measured sensitivities."""

    directory: Path
    has_room: Callable[[int], bool]
    """Callback that returns whether a number of bytes may be added."""
    on_saved: Callable[[str], None]
    """Callback with the name of a saved file."""

    @classmethod
    def of_run(cls, state: ResumeState) -> SensitivityCache:
        """Return the cache of one run, from which an interrupted one resumes on any machine."""
        return cls(directory=state.directory, has_room=lambda _: True, on_saved=state.on_saved)


@dataclass(frozen=True, kw_only=True)
class AllocationContext:
    """Inputs of the choice of shapes."""

    layers: DenseLayers
    config: CompressionConfig
    demands: TargetDemands
    """Requirements of the target on the model type."""
    geometry: ModelGeometry
    budget: Budget
    device: torch.device
    stored_dtype: torch.dtype
    cache: SensitivityCache | None
    """Cache of sensitivities for other runs; None disables it."""
    key: ContentKey
    batch: BatchSize
    """Sequences per forward pass; measurements are repeated with fewer on a small device."""
    before_batch: BeforeBatch
    prefix_length: int = 0
    """Positions of the prefix at the beginning of every calibration sequence."""
    resume_state: ResumeState | None = None
    """Files from which an interrupted measurement, comparison of plans or training of masks
    resumes; None starts it anew. The main rank alone has them."""
    on_resumed: Callable[[float, float], None] = ignore_resumed
    """Callback with the stage's fractions at begin and end of a part that was restored."""
    warn: Callable[[str], None] = ignore_warning
    """Callback with a warning for the report."""

    def before_layers(
        self, message: str, *, begin: float = 0.0, share: float = 1.0
    ) -> Callable[[float], None]:
        """Return the callback of a pass over all layers, which reports the layer that it is in.

        Args:
            message: activity of the pass.
            begin: finished fraction of the stage before the pass.
            share: share of the stage that the pass takes.
        """
        layers = self.geometry.num_hidden_layers

        def before_batch(done: float) -> None:
            layer = min(int(done * layers + _ROUNDING), layers - 1)
            self.before_batch(begin + share * done, message, layer)

        return before_batch


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Chosen shapes, measured sensitivity and the report on the choice."""

    plan: ModelPlan
    sensitivity: tuple[LayerSensitivity, ...] | None
    """Sensitivity to select by; None for methods that select by compressed hidden states."""
    report: AllocationReport
    units: tuple[LayerUnits, ...] | None = None
    """Scores of heads and neurons, where they were measured on the dense model."""
    extra_loss: float | None = None
    """Predicted loss of preferring fast shapes, in nats per token; None if unknown."""
    residual_parts: tuple[ResidualPartSelections, ...] | None = None
    """Trained selections of the residual stream and of neurons."""


def allocation_report(
    requested: Allocation,
    allocator: Allocator,
    scored: ScoredPlan | None = None,
    *,
    weighting: LossWeighting | None = None,
    calibration_loss: float | None = None,
    uniform_calibration_loss: float | None = None,
    fallback_reason: str | None = None,
) -> AllocationReport:
    """Return the report's section on the choice of shapes.

    Args:
        requested: allocation of the settings.
        allocator: allocator whose shapes are used.
        scored: the allocator's plan with predicted losses; None if it predicts none.
        weighting: conversion of output errors into loss.
        calibration_loss: loss of a trial compression with the allocator's shapes, before any
            fallback.
        uniform_calibration_loss: loss of a trial compression with uniform shapes.
        fallback_reason: reason why `allocator` is not the requested one.
    """
    layers: tuple[LayerPrediction, ...] = ()
    if scored is not None:
        layers = tuple(
            LayerPrediction(layer=layer, attention=losses.attention, mlp=losses.mlp)
            for layer, losses in enumerate(scored.layer_losses)
        )
    return AllocationReport(
        requested=requested,
        allocator=allocator,
        fell_back=fallback_reason is not None,
        fallback_reason=fallback_reason,
        weighting=weighting,
        calibration_loss=calibration_loss,
        uniform_calibration_loss=uniform_calibration_loss,
        predicted_loss=scored.predicted_loss if scored is not None else None,
        layers=layers,
    )
