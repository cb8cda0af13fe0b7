"""From a budget to shapes: who allocates, what is learnt for it, and the last look at `uniform`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from intraslice_core.allocation.budget import Budget
from intraslice_core.allocation.curves import PricedPlan
from intraslice_core.allocation.estimators import (
    AttentionOffer,
    EstimationTokens,
    fisher_shapes,
    lagrangian_shapes,
    learn_model,
    trial_rank_correlation,
)
from intraslice_core.allocation.search import OFFERS, SEQUENCES, Candidate, Rehearsal, search
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
from intraslice_core.selection.rotary_pairs import eliminate_alike
from intraslice_core.sensitivity.layer_sensitivity import AlikeKnowledge, LayerKnowledge
from intraslice_core.sensitivity.measurement import Learned, load_learned, save_learned

if TYPE_CHECKING:
    from intraslice_core.allocation.curves import PricedPlan


def with_common_pairs(layers: Sequence[LayerKnowledge]) -> tuple[AlikeKnowledge, ...]:
    """What is known of every layer, if all keep the same pairs; predicted losses are of those.

    Raises:
        NumericalError: if a layer's pairs cannot be judged.
    """
    moments = [layer.pair_moment for layer in layers]
    common = eliminate_alike(torch.cat(moments))
    costs = torch.split(common.removal_cost, [len(moment) for moment in moments])
    return tuple(
        AlikeKnowledge(
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


LEARNING_SHARE = 0.6
"""Of the stage's time; the rest compares allocations."""


class ContentKey(Protocol):
    """Names content by everything it depends on."""

    def __call__(self, **facts: object) -> str:
        """A digest of the work and of `facts`."""


@dataclass(frozen=True, kw_only=True)
class KeptKnowledge:
    """A directory for what was learnt."""

    directory: Path
    has_room: Callable[[int], bool]
    """Whether so many bytes may be added."""
    on_saved: Callable[[str], None]
    """Hears the file's name."""


@dataclass(frozen=True, kw_only=True)
class ShapeWork:
    """What the choice of shapes needs."""

    layers: DenseLayers
    config: CompressionConfig
    geometry: ModelGeometry
    budget: Budget
    device: torch.device
    stored_dtype: torch.dtype
    kept: KeptKnowledge | None
    """Where knowledge is kept for other runs; None keeps none."""
    key: ContentKey
    before_batch: Callable[[float, str], None]
    """Told the fraction of the stage that is done and what is being done; may raise to stop."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What every layer keeps, by whom, and what is known of the layers, if anything."""

    plan: ModelPlan
    knowledge: tuple[LayerKnowledge, ...] | None
    report: AllocationReport


def choose_shapes(work: ShapeWork, tokens: Tensor) -> Shapes:
    """Learn what the method wants to know, and allocate.

    Raises:
        ConfigurationError: if rounding cannot meet the budget.
        NumericalError: naming the layer.
    """
    with_knowledge = METHODS[work.config.method].measures_sensitivity and work.budget.ratio > 0.0
    split = EstimationTokens.of(tokens)
    learned = _learned(work, split, tokens) if with_knowledge else None
    free = learned
    if learned is not None and DEMANDS[work.config.target].alike:
        learned = replace(learned, layers=with_common_pairs(learned.layers))
    allocator = resolve_allocator(work.config)
    if work.budget.ratio == 0.0 or allocator == "uniform":
        return _uniform(work, learned)
    if allocator == "lagrangian":
        shapes = _lagrangian(work, learned or _learned(work, split, tokens), split)
        return shapes if free is None else _with_freedom(work, shapes, free, split)
    try:
        priced = fisher_shapes(
            work.layers,
            split,
            work.geometry,
            work.budget.parameters,
            work.config,
            rotated=allocator == "fisher_pca",
            before_batch=lambda done: work.before_batch(done, "gradients for the ratio estimator"),
        )
    except ConfigurationError as error:
        return _uniform(work, learned, _fallen_back(work, "fisher", error.message))
    report = allocation_report(work.config.allocation, allocator, priced, weighting="fisher")
    return Shapes(plan=priced.plan, knowledge=_layers(work, learned), report=report)


def _learned(work: ShapeWork, split: EstimationTokens, tokens: Tensor) -> Learned:
    """What an earlier run with the same tokens has learnt, or what this one does."""
    name = ""
    if work.kept is not None:
        key = work.key(
            knowledge=calibration_hash(tokens),
            parts=[part.name for part in fields(LayerKnowledge)],
            batch_size=work.config.batch_size,
        )
        name = f"knowledge-{key[:32]}.safetensors"
        known = load_learned(work.kept.directory / name)
        if known is not None:
            return known
    learned = learn_model(
        work.layers,
        split,
        batch_size=work.config.batch_size,
        before_batch=lambda done: work.before_batch(
            LEARNING_SHARE * done, "learning what each layer can spare"
        ),
    )
    if work.kept is not None and work.kept.has_room(learned.nbytes):
        save_learned(work.kept.directory / name, learned)
        work.kept.on_saved(name)
    return learned


def _layers(work: ShapeWork, learned: Learned | None) -> tuple[LayerKnowledge, ...] | None:
    """Only a method that learns chooses by what was learnt."""
    return learned.layers if learned and METHODS[work.config.method].measures_sensitivity else None


def _fallen_back(work: ShapeWork, weighting: LossWeighting, reason: str) -> AllocationReport:
    """Small models have shapes that only equal layers bring within half a per cent."""
    return allocation_report(
        work.config.allocation, "uniform", weighting=weighting, fallback_reason=reason
    )


def _equal_layers(work: ShapeWork) -> ModelPlan:
    shapes = DEMANDS[work.config.target].shapes
    return uniform_plan(work.geometry, work.budget.ratio, work.config.round_to, shapes)


def _uniform(
    work: ShapeWork, learned: Learned | None, report: AllocationReport | None = None
) -> Shapes:
    plan = _equal_layers(work)
    told = report or allocation_report(work.config.allocation, "uniform")
    return Shapes(plan=plan, knowledge=_layers(work, learned), report=told)


def _lagrangian(work: ShapeWork, learned: Learned, split: EstimationTokens) -> Shapes:
    """The allocator's shapes, unless equal layers do better on sequences nobody learnt from."""

    def allocate(offer: AttentionOffer) -> PricedPlan:
        parameters = work.budget.parameters
        return lagrangian_shapes(learned, work.geometry, parameters, work.config, offer)

    rehearsals = _rehearsals(work, learned, split)
    found: tuple[Candidate, ...] = ()
    try:
        if rehearsals is None:
            priced = allocate(OFFERS[0])
        else:
            found = search(allocate, rehearsals.loss)
            priced = found[0].priced
    except ConfigurationError as error:
        return _uniform(work, learned, _fallen_back(work, "fisher", error.message))
    equal = rehearsals.loss_of_equal_layers() if rehearsals is not None else None
    worse = bool(found) and equal is not None and found[0].loss > equal
    report = allocation_report(
        work.config.allocation,
        "uniform" if worse else "lagrangian",
        priced,
        weighting="fisher",
        calibration_loss=found[0].loss if found else None,
        uniform_calibration_loss=equal,
        fallback_reason="equal layers did better on held-out calibration text" if worse else None,
    ).model_copy(
        update={
            "candidates": tuple(
                CandidateReport(
                    heads=one.offer.heads,
                    attention_price=one.offer.price,
                    calibration_loss=one.loss,
                )
                for one in found
            ),
            "trials": tuple(TrialReport(**vars(trial)) for trial in learned.trials),
            "rank_correlation": trial_rank_correlation(learned.trials),
        }
    )
    if worse:
        return _uniform(work, learned, report)
    return Shapes(plan=priced.plan, knowledge=_layers(work, learned), report=report)


def _with_freedom(
    work: ShapeWork, shapes: Shapes, free: Learned, split: EstimationTokens
) -> Shapes:
    """The report, told what shapes without the target's constraints would cost."""
    unbound = work.config.model_copy(update={"target": "research"})
    rehearsals = _rehearsals(work, free, split)
    if work.config.target == "research" or rehearsals is None:
        return shapes
    try:
        priced = lagrangian_shapes(free, work.geometry, work.budget.parameters, unbound, OFFERS[1])
    except ConfigurationError:  # rounding misses the budget: nothing to compare with
        return shapes
    loss = rehearsals.loss(priced.plan)
    report = shapes.report.model_copy(update={"unconstrained_calibration_loss": loss})
    return replace(shapes, report=report)


@dataclass
class _Rehearsals:
    """Plans tried one after the other, and how far along that is."""

    work: ShapeWork
    rehearsal: Rehearsal
    turn: int = 0

    def loss(self, plan: ModelPlan) -> float:
        """Mean loss of the model with these shapes, in nats a token."""
        share = (1 - LEARNING_SHARE) / (len(OFFERS) + 1)
        begun = LEARNING_SHARE + share * self.turn
        self.turn += 1
        return self.rehearsal.loss(
            plan,
            lambda done: self.work.before_batch(begun + share * done, "comparing allocations"),
        )

    def loss_of_equal_layers(self) -> float | None:
        """The same of the uniform plan; None where there is none."""
        work = self.work
        try:
            equal = _equal_layers(work)
        except ConfigurationError:  # rounding misses the budget: no plan to compare with
            return None
        return self.loss(equal)


def _rehearsals(work: ShapeWork, learned: Learned, split: EstimationTokens) -> _Rehearsals | None:
    """None for methods whose compression is not by what was learnt."""
    method = METHODS[work.config.method]
    if not method.measures_sensitivity:
        return None
    rehearsal = Rehearsal(
        layers=work.layers,
        fit=split.learning[:SEQUENCES],
        check=split.check,
        knowledge=learned.layers,
        method=method,
        batch_size=work.config.batch_size,
        device=work.device,
        stored_dtype=work.stored_dtype,
    )
    return _Rehearsals(work=work, rehearsal=rehearsal)
