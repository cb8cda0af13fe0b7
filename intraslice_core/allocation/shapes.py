"""From a budget to shapes: who allocates, what is learnt for it, and the last look at `uniform`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from intraslice_core.allocation.budget import Budget
from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.allocation.estimators import (
    AttentionCandidate,
    CalibrationSplit,
    fisher_shapes,
    lagrangian_shapes,
    measure_sensitivity,
    trial_rank_correlation,
)
from intraslice_core.allocation.search import (
    CANDIDATES,
    TRIAL_SEQUENCES,
    Candidate,
    TrialCompression,
    search,
)
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.calibration import calibration_hash
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.config import Allocation, Allocator, CompressionConfig
from intraslice_core.errors import ConfigurationError
from intraslice_core.export.targets import DEMANDS
from intraslice_core.methods import METHODS, resolve_allocator
from intraslice_core.plan import ModelGeometry, ModelPlan
from intraslice_core.reports.schema import (
    AllocationReport,
    CandidateReport,
    LayerPrediction,
    LossWeighting,
    TrialReport,
)
from intraslice_core.selection.rotary_pairs import eliminate_shared_pairs
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity, SharedPairsSensitivity
from intraslice_core.sensitivity.measurement import (
    ModelSensitivity,
    load_sensitivity,
    save_sensitivity,
)

if TYPE_CHECKING:
    from intraslice_core.allocation.curves import ScoredPlan


def with_shared_pairs(layers: Sequence[LayerSensitivity]) -> tuple[SharedPairsSensitivity, ...]:
    """What is known of every layer, if all keep the same pairs; predicted losses are of those.

    Raises:
        NumericalError: if a layer's pairs cannot be judged.
    """
    moments = [layer.pair_moment for layer in layers]
    common = eliminate_shared_pairs(torch.cat(moments))
    costs = torch.split(common.removal_cost, [len(moment) for moment in moments])
    return tuple(
        SharedPairsSensitivity(
            **vars(replace(layer, pair_losses=_losses(layer.pair_losses, cost.sum(0)))),
            pair_order=common.order,
        )
        for layer, cost in zip(layers, costs, strict=True)
    )


def _losses(free: Tensor, cost: Tensor) -> Tensor:
    """Loss by the number kept, (pairs + 1,), from the removals' costs; no pairs cost what they did.

    Args:
        free: the same where the layer chooses for itself, (pairs + 1,).
        cost: of the removals in their order, (pairs - 1,).
    """
    removed = torch.cat((cost.new_zeros(1), cost.cumsum(0)))
    kept = 0.5 * removed.flip(0)
    return torch.cat((torch.maximum(free[:1].to(kept), kept[:1]), kept))


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
    """What is told of the choice of shapes.

    Args:
        requested: as the settings have it.
        allocator: whose shapes were taken.
        scored: its answer; None where it predicts nothing.
        weighting: what turned output errors into loss.
        calibration_loss: of the model with the shapes that were found, before any fall back.
        uniform_calibration_loss: of the model with equal layers at the same size.
        fallback_reason: why `allocator` is not the one that was asked for.
    """
    layers: tuple[LayerPrediction, ...] = ()
    if scored is not None:
        layers = tuple(
            LayerPrediction(layer=layer, attention=price.attention, mlp=price.mlp)
            for layer, price in enumerate(scored.layer_losses)
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


SENSITIVITY_SHARE = 0.6
"""Of the stage's time; the rest compares allocations."""


class ContentKey(Protocol):
    """Names content by everything it depends on."""

    def __call__(self, **facts: object) -> str:
        """A digest of the work and of `facts`."""


@dataclass(frozen=True, kw_only=True)
class SensitivityCache:
    """A directory for what was learnt."""

    directory: Path
    has_room: Callable[[int], bool]
    """Whether so many bytes may be added."""
    on_saved: Callable[[str], None]
    """Hears the file's name."""


@dataclass(frozen=True, kw_only=True)
class AllocationContext:
    """What the choice of shapes needs."""

    layers: DenseLayers
    config: CompressionConfig
    geometry: ModelGeometry
    budget: Budget
    device: torch.device
    stored_dtype: torch.dtype
    kept: SensitivityCache | None
    """Where knowledge is kept for other runs; None keeps none."""
    key: ContentKey
    before_batch: Callable[[float, str], None]
    """Told the fraction of the stage that is done and what is being done; may raise to stop."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What every layer keeps, by whom, and what is known of the layers, if anything."""

    plan: ModelPlan
    sensitivity: tuple[LayerSensitivity, ...] | None
    report: AllocationReport


def choose_shapes(work: AllocationContext, tokens: Tensor) -> Shapes:
    """Learn what the method wants to know, and allocate.

    Raises:
        ConfigurationError: if rounding cannot meet the budget.
        NumericalError: naming the layer.
    """
    with_sensitivity = METHODS[work.config.method].measures_sensitivity and work.budget.ratio > 0.0
    split = CalibrationSplit.of(tokens)
    measured = _measured(work, split, tokens) if with_sensitivity else None
    free = measured
    if measured is not None and DEMANDS[work.config.target].alike:
        measured = replace(measured, layers=with_shared_pairs(measured.layers))
    allocator = resolve_allocator(work.config)
    if work.budget.ratio == 0.0 or allocator == "uniform":
        return _uniform(work, measured)
    if allocator == "lagrangian":
        shapes = _lagrangian(work, measured or _measured(work, split, tokens), split)
        return shapes if free is None else _with_freedom(work, shapes, free, split)
    try:
        scored = fisher_shapes(
            work.layers,
            split,
            work.geometry,
            work.budget.parameters,
            work.config,
            rotated=allocator == "fisher_pca",
            before_batch=lambda done: work.before_batch(done, "gradients for the ratio estimator"),
        )
    except ConfigurationError as error:
        return _uniform(work, measured, _fallen_back(work, "fisher", error.message))
    report = allocation_report(work.config.allocation, allocator, scored, weighting="fisher")
    return Shapes(plan=scored.plan, sensitivity=_layers(work, measured), report=report)


def _measured(work: AllocationContext, split: CalibrationSplit, tokens: Tensor) -> ModelSensitivity:
    """What an earlier run with the same tokens has learnt, or what this one does."""
    name = ""
    if work.kept is not None:
        key = work.key(
            sensitivity=calibration_hash(tokens),
            parts=[part.name for part in fields(LayerSensitivity)],
            batch_size=work.config.batch_size,
        )
        name = f"sensitivity-{key[:32]}.safetensors"
        known = load_sensitivity(work.kept.directory / name)
        if known is not None:
            return known
    measured = measure_sensitivity(
        work.layers,
        split,
        batch_size=work.config.batch_size,
        before_batch=lambda done: work.before_batch(
            SENSITIVITY_SHARE * done, "learning what each layer can spare"
        ),
    )
    if work.kept is not None and work.kept.has_room(measured.nbytes):
        save_sensitivity(work.kept.directory / name, measured)
        work.kept.on_saved(name)
    return measured


def _layers(
    work: AllocationContext, measured: ModelSensitivity | None
) -> tuple[LayerSensitivity, ...] | None:
    """Only a method that learns chooses by what was learnt."""
    return (
        measured.layers if measured and METHODS[work.config.method].measures_sensitivity else None
    )


def _fallen_back(
    work: AllocationContext, weighting: LossWeighting, reason: str
) -> AllocationReport:
    """Small models have shapes that only equal layers bring within half a per cent."""
    return allocation_report(
        work.config.allocation, "uniform", weighting=weighting, fallback_reason=reason
    )


def _equal_layers(work: AllocationContext) -> ModelPlan:
    shapes = DEMANDS[work.config.target].shapes
    return uniform_plan(work.geometry, work.budget.ratio, work.config.round_to, shapes)


def _uniform(
    work: AllocationContext,
    measured: ModelSensitivity | None,
    report: AllocationReport | None = None,
) -> Shapes:
    plan = _equal_layers(work)
    told = report or allocation_report(work.config.allocation, "uniform")
    return Shapes(plan=plan, sensitivity=_layers(work, measured), report=told)


def _lagrangian(
    work: AllocationContext, measured: ModelSensitivity, split: CalibrationSplit
) -> Shapes:
    """The allocator's shapes, unless equal layers do better on sequences nobody learnt from."""

    def allocate(candidate: AttentionCandidate) -> ScoredPlan:
        parameters = work.budget.parameters
        return lagrangian_shapes(measured, work.geometry, parameters, work.config, candidate)

    trial_compressions = _trial_compressions(work, measured, split)
    found: tuple[Candidate, ...] = ()
    try:
        if trial_compressions is None:
            scored = allocate(CANDIDATES[0])
        else:
            found = search(allocate, trial_compressions.loss)
            scored = found[0].scored
    except ConfigurationError as error:
        return _uniform(work, measured, _fallen_back(work, "fisher", error.message))
    equal = trial_compressions.uniform_loss() if trial_compressions is not None else None
    worse = bool(found) and equal is not None and found[0].loss > equal
    report = allocation_report(
        work.config.allocation,
        "uniform" if worse else "lagrangian",
        scored,
        weighting="fisher",
        calibration_loss=found[0].loss if found else None,
        uniform_calibration_loss=equal,
        fallback_reason="equal layers did better on held-out calibration text" if worse else None,
    ).model_copy(
        update={
            "candidates": tuple(
                CandidateReport(
                    heads=one.candidate.heads,
                    attention_price=one.candidate.price,
                    calibration_loss=one.loss,
                )
                for one in found
            ),
            "trials": tuple(TrialReport(**vars(trial)) for trial in measured.trials),
            "rank_correlation": trial_rank_correlation(measured.trials),
        }
    )
    if worse:
        return _uniform(work, measured, report)
    return Shapes(plan=scored.plan, sensitivity=_layers(work, measured), report=report)


def _with_freedom(
    work: AllocationContext, shapes: Shapes, free: ModelSensitivity, split: CalibrationSplit
) -> Shapes:
    """The report, told what shapes without the target's constraints would cost."""
    unbound = work.config.model_copy(update={"target": "research"})
    trial_compressions = _trial_compressions(work, free, split)
    if work.config.target == "research" or trial_compressions is None:
        return shapes
    try:
        scored = lagrangian_shapes(
            free, work.geometry, work.budget.parameters, unbound, CANDIDATES[1]
        )
    except ConfigurationError:  # rounding misses the budget: nothing to compare with
        return shapes
    loss = trial_compressions.loss(scored.plan)
    report = shapes.report.model_copy(update={"unconstrained_calibration_loss": loss})
    return replace(shapes, report=report)


@dataclass
class _TrialCompressions:
    """Plans tried one after the other, and how far along that is."""

    work: AllocationContext
    trial_compression: TrialCompression
    turn: int = 0

    def loss(self, plan: ModelPlan) -> float:
        """Mean loss of the model with these shapes, in nats a token."""
        share = (1 - SENSITIVITY_SHARE) / (len(CANDIDATES) + 1)
        begun = SENSITIVITY_SHARE + share * self.turn
        self.turn += 1
        return self.trial_compression.loss(
            plan,
            lambda done: self.work.before_batch(begun + share * done, "comparing allocations"),
        )

    def uniform_loss(self) -> float | None:
        """The same of the uniform plan; None where there is none."""
        work = self.work
        try:
            equal = _equal_layers(work)
        except ConfigurationError:  # rounding misses the budget: no plan to compare with
            return None
        return self.loss(equal)


def _trial_compressions(
    work: AllocationContext, measured: ModelSensitivity, split: CalibrationSplit
) -> _TrialCompressions | None:
    """None for methods whose compression is not by what was learnt."""
    method = METHODS[work.config.method]
    if not method.measures_sensitivity:
        return None
    trial_compression = TrialCompression(
        layers=work.layers,
        fit=split.sensitivity[:TRIAL_SEQUENCES],
        check=split.check,
        sensitivity=measured.layers,
        method=method,
        batch_size=work.config.batch_size,
        device=work.device,
        stored_dtype=work.stored_dtype,
    )
    return _TrialCompressions(work=work, trial_compression=trial_compression)
