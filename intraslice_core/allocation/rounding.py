"""Rounding step of the dimensions, and the check that it can meet the budget; without torch.

The check runs before the calibration. It accepts a step if uniform shapes meet the budget within
the tolerance, or if the allocator chooses every layer's MLP width and one step of one MLP is within
the tolerance, because any remainder can then be spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from intraslice_core.allocation.budget import Budget, resolve_round_to
from intraslice_core.allocation.equal_layers import plain_plan, smallest_unit_plan
from intraslice_core.config import CompressionSettings
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.methods import resolve_allocator
from intraslice_core.plan import ModelGeometry, ShapeConstraint

_RATIOS = tuple(percent / 100 for percent in range(99, 0, -1))
"""Ratios that may be advised, descending."""


def require_rounding(
    settings: CompressionSettings,
    geometry: ModelGeometry,
    budget: Budget,
    constraint: ShapeConstraint,
) -> None:
    """Raise if rounding misses the budget by more than the target's tolerance.

    Args:
        settings: of the compression.
        geometry: of the dense model.
        budget: of the compression.
        constraint: of the target on the family.

    Raises:
        ConfigurationError: naming the parameters of both, and a step that meets the budget.
        BudgetOutOfReachError: if no step meets it.
    """
    step = resolve_round_to(settings, geometry)
    if resolve_allocator(settings) == "global_threshold" and budget.ratio > 0.0:
        _require_units(settings, geometry, budget, constraint, step)
    problem = _problem(settings, geometry, budget, constraint, step)
    if problem is None:
        return
    unreachable = isinstance(problem, BudgetOutOfReachError)
    if resolve_allocator(settings) in ("whole_layers", "residual_width") and unreachable:
        field = f"compression.{budget.field}"
        raise BudgetOutOfReachError(problem.message, field=field, hint=problem.hint)
    problems = (
        (_problem(settings, geometry, budget, constraint, finer), finer) for finer in _finer(step)
    )
    fitting = next((finer for finer_problem, finer in problems if finer_problem is None), None)
    if fitting is None:
        raise BudgetOutOfReachError(
            problem.message,
            field=f"compression.{budget.field}",
            hint=_other_budget(settings, geometry, budget, constraint, step),
        )
    raise ConfigurationError(
        f"with round_to {step}, {problem.message}",
        field="compression.round_to",
        hint=f"give round_to {fitting} or another {budget.field}",
    )


def _require_units(
    settings: CompressionSettings,
    geometry: ModelGeometry,
    budget: Budget,
    constraint: ShapeConstraint,
    step: int,
) -> None:
    """Raise if the smallest numbers of heads and neurons within the module cap exceed the budget.

    Raises:
        BudgetOutOfReachError: naming the smallest number of parameters.
    """
    smallest = smallest_unit_plan(geometry, step, settings.module_cap, constraint)
    minimum, dense = smallest.parameters(geometry), geometry.dense_plan().parameters(geometry)
    if budget.parameters < minimum:
        raise BudgetOutOfReachError(
            f"the budget keeps {max(budget.parameters, 0):,} of {dense:,} compressible parameters, "
            f"but whole heads and neurons leave at least {minimum:,}",
            field=f"compression.{budget.field}",
            hint=f"keep at least {minimum / dense:.4f} of them (a ratio of at most "
            f"{math.floor(10_000 * (1.0 - minimum / dense)) / 10_000}), or use a method that cuts "
            "within heads, such as intraslice_plus",
        )


def _other_budget(
    settings: CompressionSettings,
    geometry: ModelGeometry,
    budget: Budget,
    constraint: ShapeConstraint,
    step: int,
) -> str:
    """Return the advice to remove less: the largest smaller ratio that some step can meet.

    A larger ratio might be out of reach for another reason, such as the module cap.
    """
    dense = geometry.dense_plan().parameters(geometry)
    steps = (step, *_finer(step))
    for ratio in (ratio for ratio in _RATIOS if ratio < budget.ratio):
        other = Budget(parameters=round((1.0 - ratio) * dense), ratio=ratio, field="ratio")
        for candidate in steps:
            if _problem(settings, geometry, other, constraint, candidate) is None:
                rounding = "" if candidate == step else f" with round_to {candidate}"
                return f"give ratio {ratio:g}{rounding}, the next one that fits, or another target"
    return f"give another {budget.field} or target"


def _problem(
    settings: CompressionSettings,
    geometry: ModelGeometry,
    budget: Budget,
    constraint: ShapeConstraint,
    step: int,
) -> ConfigurationError | None:
    """Return the error of uniform shapes with a step, or None if the budget can be met."""
    try:
        plain_plan(settings, geometry, budget.ratio, step, constraint)
    except ConfigurationError as error:
        own_widths = "width" not in constraint.same_across_layers
        fixed = ("uniform", "two_stage", "block_influence", "whole_layers", "residual_width")
        if own_widths and resolve_allocator(settings) not in fixed:
            one_step = geometry.mlp_projections * geometry.hidden_size * step
            if one_step <= constraint.tolerance * budget.parameters:
                return None
        return error
    return None


def _finer(step: int) -> Iterator[int]:
    """Yield smaller steps, first powers of two, descending."""
    smaller = range(step - 1, 0, -1)
    yield from (candidate for candidate in smaller if candidate & (candidate - 1) == 0)
    yield from (candidate for candidate in smaller if candidate & (candidate - 1) != 0)
