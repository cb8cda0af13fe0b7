"""Choice of shapes within a budget (docs/method.md, section 4).

This module measures the sensitivity or loads it from the cache, calls the allocator, and falls back
to equal layers that spare attention if a trial compression shows them to be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from intraslice_core.allocation.cached_sensitivity import (
    cached_sensitivity,
    save_whole_sensitivity,
)
from intraslice_core.allocation.compressed_input import within_input
from intraslice_core.allocation.context import (
    AllocationContext,
    SensitivityCache,
    Shapes,
    allocation_report,
)
from intraslice_core.allocation.curves import ScoredPlan
from intraslice_core.allocation.estimators import (
    GRADIENT_SHARE,
    AllocationCandidate,
    CalibrationSplit,
    fisher_shapes,
    lagrangian_shapes,
    measure_sensitivity,
    trial_rank_correlation,
)
from intraslice_core.allocation.fast_shapes import (
    equal_plan,
    fast_shapes,
    fast_shapes_report,
)
from intraslice_core.allocation.influence_shapes import influence_shapes
from intraslice_core.allocation.judge import HeldOutDivergence, difference
from intraslice_core.allocation.layer_shapes import layer_shapes
from intraslice_core.allocation.path_shapes import path_shapes, unit_order
from intraslice_core.allocation.plan_comparison import compare_plans
from intraslice_core.allocation.saved_measurement import saved_measurement
from intraslice_core.allocation.search import (
    CANDIDATES,
    SearchResult,
    TrialCompression,
    search,
)
from intraslice_core.allocation.shared_pairs import with_shared_pairs
from intraslice_core.allocation.trained_residual_parts import trained_residual_parts
from intraslice_core.allocation.unit_shapes import unit_shapes
from intraslice_core.calibration import sequence_sources
from intraslice_core.config import Allocator
from intraslice_core.errors import ConfigurationError
from intraslice_core.methods import METHODS, resolve_allocator
from intraslice_core.plan import ONLY_DENSE, ModelPlan, ShapeConstraint
from intraslice_core.ranks import MAIN
from intraslice_core.reports.schema import AllocationReport, CandidateReport, TrialReport
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import ModelSensitivity

__all__ = [
    "SENSITIVITY_SHARE",
    "AllocationContext",
    "SensitivityCache",
    "Shapes",
    "allocation_report",
    "choose_shapes",
]

SENSITIVITY_SHARE = 0.75
"""Share of the stage's time that the measurement takes; the rest compares allocations."""


UNIFORM_IS_BETTER = "equal MLP widths with whole attention had less loss on held-out text"
"""Reason of the fallback to `uniform` after trial compressions."""


def choose_shapes(context: AllocationContext, tokens: Tensor) -> Shapes:
    """Choose the shapes, and report the multiple that fast shapes have.

    Args:
        context: inputs of the choice.
        tokens: calibration, (samples, length), int64.

    Raises:
        ConfigurationError: if rounding cannot meet the budget.
        NumericalError: naming the layer.
    """
    shapes = _choose_shapes(context, tokens)
    # All ranks have chosen alike up to rounding; from here on they have the same.
    shapes = context.layers.ranks.computed(MAIN, lambda: shapes)
    item_bytes, demands = context.stored_dtype.itemsize, context.demands.shapes
    preferred = fast_shapes(context.config, context.geometry, item_bytes, demands)
    section = fast_shapes_report(shapes.plan, context.geometry, preferred, shapes.extra_loss)
    report = shapes.report.model_copy(update={"fast_shapes": section})
    return replace(shapes, report=report)


def _choose_shapes(context: AllocationContext, tokens: Tensor) -> Shapes:
    """Measure what the method and the allocator need, and allocate."""
    kinds = sequence_sources(context.config.resolved_calibration)
    split = CalibrationSplit.of(tokens, kinds, context.prefix_length)
    free = measured = None
    allocator = resolve_allocator(context.config)
    own = _shapes_of_parts(context, tokens, split)
    if own is not None:
        return own
    if METHODS[context.config.method].measures_sensitivity and context.budget.ratio > 0.0:
        free = measured = _measured(context, split, tokens)
        if METHODS[context.config.method].value_basis == "coordinates":
            order = unit_order(context, tokens, measured.layers, SENSITIVITY_SHARE)
            if allocator == "solution_path":
                return path_shapes(context, order)
            free = measured = replace(measured, layers=order.layers)
        if context.demands.alike:
            measured = replace(measured, layers=with_shared_pairs(measured.layers, context.device))
    if METHODS[context.config.method].slices_residual:
        report = allocation_report(context.config.allocation, allocator)
        return Shapes(plan=_uniform_plan(context), sensitivity=None, report=report)
    if context.budget.ratio == 0.0 or allocator == "uniform":
        return _uniform(context, measured)
    if allocator == "block_influence":
        return influence_shapes(context, tokens)
    if allocator == "lagrangian":
        shapes = _lagrangian(context, measured or _measured(context, split, tokens), split)
        return shapes if free is None else _with_unconstrained_loss(context, shapes, free, split)
    return _fisher(context, measured, split, allocator)


def _shapes_of_parts(
    context: AllocationContext, tokens: Tensor, split: CalibrationSplit
) -> Shapes | None:
    """Return the shapes of methods that remove layers or units, or that train their selections."""
    method = METHODS[context.config.method]
    if method.layers is not None:
        return layer_shapes(context, tokens, split)
    if method.units is not None:
        return unit_shapes(context, tokens, split)
    trains = context.config.mask_training is not None and context.budget.ratio > 0.0
    if method.residual_parts and trains:
        return trained_residual_parts(context, tokens, partial(_uniform_plan, context))
    return None


def _fisher(
    context: AllocationContext,
    measured: ModelSensitivity | None,
    split: CalibrationSplit,
    allocator: Allocator,
) -> Shapes:
    """Return the shapes of the Fisher allocator, or uniform ones if rounding misses the budget."""

    def before_batch(done: float) -> None:
        context.before_batch(done, "computing gradients")

    def on_resumed(done: float) -> None:
        before_batch(0.0)  # the stage begins before its part is skipped
        context.on_resumed(0.0, done)

    saved = saved_measurement(context, [split.gradients], rotated=allocator == "fisher_pca")
    try:
        scored = context.batch.repeat(
            lambda size: fisher_shapes(
                context.layers,
                split,
                context.geometry,
                context.budget.parameters,
                context.config.model_copy(update={"batch_size": size}),
                rotated=allocator == "fisher_pca",
                before_batch=before_batch,
                saved=saved,
                on_resumed=on_resumed,
            )
        )
    except ConfigurationError as error:
        return _uniform(context, measured, _fallback_report(context, error.message))
    report = allocation_report(context.config.allocation, allocator, scored, weighting="fisher")
    return Shapes(plan=scored.plan, sensitivity=_layers(context, measured), report=report)


def _measured(
    context: AllocationContext, split: CalibrationSplit, tokens: Tensor
) -> ModelSensitivity:
    """Load the sensitivity from the cache, or measure and cache it.

    Trial cuts are measured for the Lagrangian allocator only, value dimensions as they are for
    methods that select among them. Others also take a cached measurement that has them.
    """
    allocator = resolve_allocator(context.config)
    with_trial_cuts = allocator == "lagrangian"
    with_value_dims = METHODS[context.config.method].value_basis == "coordinates"
    parts = {"with_trial_cuts": with_trial_cuts, "with_value_dims": with_value_dims}
    saved = saved_measurement(context, split.measured, **parts)
    cached = context.layers.ranks.computed(
        MAIN, lambda: cached_sensitivity(context, tokens, **parts)
    )
    if cached is not None:
        if saved is not None:
            saved.remove()
        return cached
    if saved is not None:
        saved.remove_others()
    ends_stage = context.config.mask_training is None and (
        allocator in ("uniform", "solution_path")
        or not METHODS[context.config.method].measures_sensitivity
    )
    share = 1.0 if ends_stage else SENSITIVITY_SHARE

    def attempt(size: int) -> ModelSensitivity:
        return measure_sensitivity(
            context.layers,
            split,
            batch_size=size,
            before_batch=partial(_report_sensitivity, context, share),
            **parts,
            saved=saved,
            on_resumed=partial(_skip_sensitivity, context, share),
        )

    measured = context.batch.repeat(attempt)
    save_whole_sensitivity(context, tokens, measured, **parts)
    if saved is not None:
        saved.remove()
    return measured


def _report_sensitivity(context: AllocationContext, share: float, done: float) -> None:
    """Report the finished fraction of the sensitivity, whose gradients come first."""
    if done < GRADIENT_SHARE:
        context.before_batch(share * done, "computing gradients")
        return
    message, layers_share = "measuring the sensitivity of layers", 1.0 - GRADIENT_SHARE
    report = context.before_layers(
        message, begin=share * GRADIENT_SHARE, share=share * layers_share
    )
    report((done - GRADIENT_SHARE) / layers_share)


def _skip_sensitivity(context: AllocationContext, share: float, begin: float, end: float) -> None:
    """Report that an interrupted run had measured the part between two fractions."""
    if begin == 0.0:
        _report_sensitivity(context, share, begin)  # the stage begins before its part is skipped
    context.on_resumed(share * begin, share * end)


def _layers(
    context: AllocationContext, measured: ModelSensitivity | None
) -> tuple[LayerSensitivity, ...] | None:
    """Return the layers' sensitivity if the method selects by it."""
    selects_by_it = METHODS[context.config.method].measures_sensitivity
    return measured.layers if measured is not None and selects_by_it else None


def _fallback_report(context: AllocationContext, reason: str) -> AllocationReport:
    """Return the report of a fallback to `uniform` because rounding misses the budget.

    Small models have few sizes, and only uniform shapes may be within half a percent.
    """
    return allocation_report(
        context.config.allocation, "uniform", weighting="fisher", fallback_reason=reason
    )


def _uniform_plan(
    context: AllocationContext, constraint: ShapeConstraint | None = None
) -> ModelPlan:
    """Return the uniform plan of a constraint, by default the target's.

    Raises:
        ConfigurationError: if rounding misses the budget by more than the tolerance.
    """
    config, item_bytes = context.config, context.stored_dtype.itemsize
    shapes = constraint or context.demands.shapes
    return equal_plan(config, context.geometry, context.budget.ratio, item_bytes, shapes)


def _spared_plan(context: AllocationContext) -> ModelPlan:
    """Return equal MLP widths with whole attention.

    Raises:
        ConfigurationError: if the MLPs cannot give the whole budget, or rounding misses it.
    """
    whole = replace(
        context.demands.shapes,
        multiples={**context.demands.shapes.multiples, "pairs": ONLY_DENSE},
    )
    plan = _uniform_plan(context, whole)
    least = (1.0 - context.config.module_cap) * context.geometry.intermediate_size
    if min(layer.intermediate_size for layer in plan.layers) < least:
        raise ConfigurationError(
            "the MLPs alone cannot give the budget within the module cap",
            field="compression.module_cap",
        )
    return plan


def _uniform(
    context: AllocationContext,
    measured: ModelSensitivity | None,
    report: AllocationReport | None = None,
) -> Shapes:
    """Return uniform shapes, with the report of a fallback if given."""
    return Shapes(
        plan=_uniform_plan(context),
        sensitivity=_layers(context, measured),
        report=report or allocation_report(context.config.allocation, "uniform"),
    )


def _lagrangian(
    context: AllocationContext, measured: ModelSensitivity, split: CalibrationSplit
) -> Shapes:
    """Return the Lagrangian's shapes, or equal ones if the check set shows them to be better."""

    def allocate(candidate: AllocationCandidate) -> ScoredPlan:
        def with_budget(parameters: int) -> ScoredPlan:
            return lagrangian_shapes(
                measured,
                context.geometry,
                parameters,
                context.config,
                candidate,
                context.demands,
                context.stored_dtype.itemsize,
            )

        return within_input(with_budget, context.geometry, context.budget.parameters)

    trials = _trial_compression(context, measured, split)
    rival = None if trials is None else _rival_plan(context)
    result: SearchResult | None = None
    try:
        if trials is None:
            scored = allocate(CANDIDATES[0])
        else:
            result = search(
                allocate,
                partial(_divergences, context, trials),
                rival,
                context.layers.ranks,
            )
            scored = result.candidates[0].scored
    except ConfigurationError as error:
        return _uniform(context, measured, _fallback_report(context, error.message))
    report = _lagrangian_report(context, measured, scored, result)
    if report.fell_back and rival is not None:
        return Shapes(plan=rival, sensitivity=_layers(context, measured), report=report)
    return Shapes(
        plan=scored.plan,
        sensitivity=_layers(context, measured),
        report=report,
        extra_loss=scored.extra_loss,
    )


def _lagrangian_report(
    context: AllocationContext,
    measured: ModelSensitivity,
    scored: ScoredPlan,
    result: SearchResult | None,
) -> AllocationReport:
    """Return the report on the Lagrangian, falling back to equal shapes if they are better.

    Args:
        context: inputs of the choice.
        measured: sensitivity of all layers.
        scored: best plan.
        result: trial compressions of all candidates and of equal shapes; None without trials.
    """
    results = () if result is None else result.candidates
    best = results[0].divergence if results else None
    rival = None if result is None else result.rival
    worse = best is not None and rival is not None and difference(rival, best).favours_first
    report = allocation_report(
        context.config.allocation,
        "uniform" if worse else "lagrangian",
        scored,
        weighting="fisher",
        calibration_loss=None if best is None else best.score,
        uniform_calibration_loss=None if rival is None else rival.score,
        fallback_reason=UNIFORM_IS_BETTER if worse else None,
    )
    candidates = tuple(
        CandidateReport(
            heads=result.candidate.heads,
            attention_price=result.candidate.penalty,
            head_penalty=result.candidate.head_penalty,
            trial_cuts=result.candidate.trial_power > 0.0,
            trial_power=result.candidate.trial_power,
            calibration_loss=result.divergence.score,
            standard_error=difference(result.divergence, results[0].divergence).standard_error,
        )
        for result in results
    )
    return report.model_copy(
        update={
            "candidates": candidates,
            "trials": tuple(TrialReport(**vars(trial)) for trial in measured.trials),
            "rank_correlation": trial_rank_correlation(measured.trials),
        }
    )


def _with_unconstrained_loss(
    context: AllocationContext, shapes: Shapes, free: ModelSensitivity, split: CalibrationSplit
) -> Shapes:
    """Add to the report the loss of shapes without the target's constraints.

    `free` is the sensitivity with pairs chosen by each layer itself.
    """
    trials = _trial_compression(context, free, split)
    if context.config.target == "research" or trials is None:
        return shapes
    config = context.config.model_copy(update={"target": "research"})
    parameters = context.budget.parameters
    try:
        scored = lagrangian_shapes(free, context.geometry, parameters, config, CANDIDATES[0])
    except ConfigurationError:  # rounding misses the budget: nothing to compare with
        return shapes
    (divergence,) = _divergences(context, trials, [scored.plan])
    report = shapes.report.model_copy(update={"unconstrained_calibration_loss": divergence.score})
    return replace(shapes, report=report)


# -- trial compressions ------------------------------------------------------------------------


def _divergences(
    context: AllocationContext, trials: TrialCompression, plans: Sequence[ModelPlan]
) -> tuple[HeldOutDivergence, ...]:
    """Return the divergences of trial compressions from the dense model, saved or measured."""
    report = context.before_layers(
        "comparing allocations", begin=SENSITIVITY_SHARE, share=1 - SENSITIVITY_SHARE
    )
    return compare_plans(context, trials, plans, report)


def _rival_plan(context: AllocationContext) -> ModelPlan | None:
    """Return equal shapes, with whole attention if possible; None if rounding allows none."""
    # Layers of one shape are equal anyway: their other choice is attention against MLP.
    spared = () if context.demands.alike else (_spared_plan,)
    for plan_of in (*spared, _uniform_plan):
        try:
            plan: ModelPlan = plan_of(context)
        except ConfigurationError:
            continue
        return plan
    return None


def _trial_compression(
    context: AllocationContext, measured: ModelSensitivity, split: CalibrationSplit
) -> TrialCompression | None:
    """Return the trial compression; None for methods that do not select by sensitivity."""
    if not METHODS[context.config.method].measures_sensitivity:
        return None
    return TrialCompression(
        layers=context.layers,
        fit=split.trial_fit,
        check=split.judged,
        kinds=split.judged_kinds,
        sensitivity=measured.layers,
        batch_size=context.batch.size,
        device=context.device,
        stored_dtype=context.stored_dtype,
        prefix_length=split.prefix_length,
    )
