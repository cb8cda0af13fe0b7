"""Shapes of methods that remove whole heads and neurons (docs/methods.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from intraslice_core.allocation.attention_removal import AttentionRemoval
from intraslice_core.allocation.budget import resolve_round_to
from intraslice_core.allocation.context import AllocationContext, Shapes, allocation_report
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.allocation.fast_shapes import equal_plan, with_fast_widths
from intraslice_core.allocation.shots import CutModel, plans_between
from intraslice_core.allocation.threshold import UnitScores, threshold_plan
from intraslice_core.allocation.two_stage import removed_attentions, two_stage_plan
from intraslice_core.calibration import calibration_hash
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.diagonal_moments import LayerActivations
from intraslice_core.methods import METHODS, UnitRemoval, resolve_allocator
from intraslice_core.plan import ModelPlan
from intraslice_core.ranks import MAIN
from intraslice_core.sensitivity.activations import (
    load_activations,
    measure_activations,
    save_activations,
)
from intraslice_core.unit_removal import LayerUnits, score_units

_MEASUREMENT_SHARE = 0.5
"""Share of the stage's time that the pass over the calibration takes where attentions follow."""


def unit_shapes(context: AllocationContext, tokens: Tensor, split: CalibrationSplit) -> Shapes:
    """Measure the scores that the method needs and allocate.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.
        split: the same by use.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if rounding misses the budget by more than the tolerance.
        NumericalError: naming the layer.
    """
    removal = METHODS[context.config.method].units
    assert removal is not None
    allocator = resolve_allocator(context.config)
    if context.budget.ratio == 0.0:
        allocator = "uniform"
    report = allocation_report(context.config.allocation, allocator)
    if removal.inputs == "compressed":
        return Shapes(plan=_equal(context), sensitivity=None, report=report)
    if removal.shots > 1:
        plan = _equal(context)
        units = _scores_in_shots(context, tokens, removal, plan)
        return Shapes(plan=plan, sensitivity=None, report=report, units=units)
    share = _MEASUREMENT_SHARE if allocator == "two_stage" else 1.0
    units = unit_scores(context, tokens, removal, share)
    if allocator == "two_stage":
        plan = _two_stage(context, split, units)
    elif allocator == "global_threshold":
        plan = _threshold(context, units)
    else:
        plan = _equal(context)
    return Shapes(plan=plan, sensitivity=None, report=report, units=units)


def _equal(context: AllocationContext) -> ModelPlan:
    """Return equal numbers of heads and neurons in all layers; nothing is removed at ratio 0."""
    if context.budget.ratio == 0.0:
        return context.geometry.dense_plan()
    return equal_plan(
        context.config,
        context.geometry,
        context.budget.ratio,
        context.stored_dtype.itemsize,
        context.demands.shapes,
    )


def _threshold(context: AllocationContext, units: tuple[LayerUnits, ...]) -> ModelPlan:
    """Return the plan of one threshold for the standardised scores of all layers (FLAP)."""
    scores = []
    for layer in units:
        heads, neurons = layer.comparable(context.geometry.num_attention_heads)
        scores.append(UnitScores(heads=heads.cpu().numpy(), neurons=neurons.cpu().numpy()))
    return threshold_plan(
        context.geometry,
        scores,
        context.budget.parameters,
        round_to=resolve_round_to(context.config, context.geometry),
        module_cap=context.config.module_cap,
        constraint=context.demands.shapes,
    )


def _two_stage(
    context: AllocationContext, split: CalibrationSplit, units: tuple[LayerUnits, ...]
) -> ModelPlan:
    """Return equal MLP widths, and no attention in the layers that need it least (2SSP)."""
    geometry, shapes = context.geometry, context.demands.shapes
    ratio, step = context.budget.ratio, resolve_round_to(context.config, geometry)
    count = removed_attentions(geometry, ratio, step, shapes)

    def plan_without(removed: tuple[int, ...]) -> ModelPlan:
        return with_fast_widths(
            two_stage_plan(geometry, ratio, step, shapes, removed),
            context.config,
            geometry,
            ratio,
            context.stored_dtype.itemsize,
            shapes,
        )

    widths = [layer.intermediate_size for layer in plan_without(tuple(range(count))).layers]

    def least_needed(size: int) -> tuple[int, ...]:
        search = AttentionRemoval(
            layers=context.layers,
            tokens=split.judged,
            neurons=tuple(layer.mlp for layer in units),
            widths=tuple(widths),
            batch_size=size,
            stored_dtype=context.stored_dtype,
            prefix_length=context.prefix_length,
            fixed=shapes.attention_stays_in,
        )
        return search.least_needed(
            count,
            lambda done: context.before_batch(
                _MEASUREMENT_SHARE + (1.0 - _MEASUREMENT_SHARE) * done, "removing attentions"
            ),
        )

    return plan_without(context.batch.repeat(least_needed))


# -- scores --------------------------------------------------------------------------------------


def unit_scores(
    context: AllocationContext,
    tokens: Tensor,
    removal: UnitRemoval,
    share: float,
    done_before: float = 0.0,
) -> tuple[LayerUnits, ...]:
    """Return the scores of all layers, on the CPU.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.
        removal: names the score.
        share: share of the stage's time that the pass takes.
        done_before: share that is done.

    Raises:
        NumericalError: naming layer and module.
    """
    activations, layers = _activations(context, tokens, share, done_before), context.layers

    def scored() -> tuple[LayerUnits, ...]:
        return tuple(
            score_units(removal.score, moments.to(context.device), layers.weights(layer)).to("cpu")
            for layer, moments in enumerate(activations)
        )

    return layers.ranks.computed(MAIN, scored)


def _scores_in_shots(
    context: AllocationContext, tokens: Tensor, removal: UnitRemoval, final: ModelPlan
) -> tuple[LayerUnits, ...]:
    """Return the scores of all layers before the last shot, on the CPU."""
    dense = context.geometry.dense_plan()
    shots = removal.shots if final != dense else 1
    units = unit_scores(context, tokens, removal, 1.0 / shots)
    plans = plans_between(dense, final, shots)
    for shot, plan in enumerate(plans, start=1):
        model = CutModel(layers=context.layers, plan=plan, units=units)
        activations = _activations(
            context,
            tokens,
            1.0 / shots,
            shot / shots,
            cut=model.cut,
            facts={"score": removal.score, "cuts": [own.model_dump() for own in plans[:shot]]},
        )
        units = tuple(
            model.rescored(layer, removal.score, moments.to(context.device)).to("cpu")
            for layer, moments in enumerate(activations)
        )
    return units


def _activations(
    context: AllocationContext,
    tokens: Tensor,
    share: float,
    done_before: float = 0.0,
    *,
    cut: Callable[[int, LayerWeights], LayerWeights] | None = None,
    facts: Mapping[str, object] = MappingProxyType({}),
) -> tuple[LayerActivations, ...]:
    """Load the moments from the cache, or measure and cache them.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.
        share: share of the stage's time that this pass takes.
        done_before: share that is done.
        cut: as in `measure_activations`.
        facts: everything that `cut` depends on besides the model and the tokens.
    """
    cache = context.cache
    key = context.key(
        activations=calibration_hash(tokens),
        prefix_length=context.prefix_length,
        batch_size=context.config.batch_size,
        **facts,
    )
    name = f"activations-{key[:32]}.safetensors"
    cached = context.layers.ranks.computed(
        MAIN, lambda: None if cache is None else load_activations(cache.directory / name)
    )
    if cached is not None:
        return cached
    measured = context.batch.repeat(
        lambda size: measure_activations(
            context.layers,
            tokens,
            batch_size=size,
            before_batch=context.before_layers(
                "measuring activations", begin=done_before, share=share
            ),
            prefix_length=context.prefix_length,
            cut=cut,
        )
    )
    if cache is not None and cache.has_room(sum(moments.nbytes for moments in measured)):
        save_activations(cache.directory / name, measured)
        cache.on_saved(name)
    return measured
