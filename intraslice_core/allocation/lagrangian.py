"""The Lagrangian allocator: least predicted loss within a budget (docs/method.md, section 4).

At a multiplier μ, a loss per parameter, every module takes the option of least
`loss + μ · parameters`. Bisection finds the μ at which the sum of parameters passes the budget.
Modules with two equally good options there change to the larger one, one by one, while they fit. Up
to this point no choice with as few parameters has less loss. The remaining budget is smaller than
the next module's change and is spent on single rounding steps of the modules that gain most
(`spend_remainder`). Hence

* the loss exceeds the optimum by less than that single change of one module, and is optimal if all
  modules have convex curves with equally large steps;
* a larger budget never costs more loss, except where the next change is so large that
  `spend_remainder` considers only a part of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intraslice_core.allocation.curves import ModelCurves, ScoredPlan
from intraslice_core.allocation.options import Choice, OptionTable, option_tables
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.plan import FREE, ShapeConstraint

_MAX_CELLS = 30_000_000
"""Maximum size of the dynamic program, options times parameters; about a second of work."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Growths:
    """Larger options of one module that have less loss."""

    module: int
    options: NDArray[np.intp]
    """Indices, (n,)."""
    parameters: NDArray[np.int64]
    """Additional parameters, (n,)."""
    gains: NDArray[np.float64]
    """Decrease of the loss, (n,)."""

    def within(self, span: int) -> _Growths:
        """Return the growths of at most `span` parameters."""
        mask = self.parameters <= span
        return _Growths(
            module=self.module,
            options=self.options[mask],
            parameters=self.parameters[mask],
            gains=self.gains[mask],
        )


def spend_remainder(
    table: OptionTable, choice: Choice, left: int, *, module: int = -1, span: int = 0
) -> Choice:
    """Let modules grow by at most `left` parameters in total.

    Args:
        table: all options.
        choice: current options; it is not modified.
        left: parameters that may be spent.
        module: module whose next change is the best of all but does not fit; -1 for none.
        span: parameters of that change, more than `left`. The options considered depend on it and
            not on `left`, so that a larger remainder never gains less.

    Returns:
        The new choice.
    """
    choice = choice.copy()
    if module >= 0 and left > 0:
        left -= _grow_best(choice, left, _candidates(table, choice, module, span))
    _fill_up(table, choice, left)
    return choice


def _candidates(table: OptionTable, choice: Choice, module: int, span: int) -> list[_Growths]:
    """Return all growths within the span; if too many, all of `module` and the next of others."""
    growths = [_growths(table, choice, row).within(span - 1) for row in range(len(choice))]
    unit = _unit(growths)
    reach = span
    while True:
        limited = [
            growth if growth.module == module else growth.within(reach) for growth in growths
        ]
        limited = [growth for growth in limited if growth.options.size]
        options = sum(growth.options.size for growth in limited)
        if reach <= 1 or options * (span // unit) <= _MAX_CELLS:
            return limited
        reach //= 2


def _growths(table: OptionTable, choice: Choice, row: int) -> _Growths:
    """Return the larger options of a module that have less loss than every smaller one."""
    here = choice[row]
    losses = table.losses[row, here:]
    before = np.minimum.accumulate(losses)
    better = np.flatnonzero(losses[1:] < before[:-1]) + 1
    return _Growths(
        module=row,
        options=here + better,
        parameters=table.parameters[row, here + better] - table.parameters[row, here],
        gains=losses[0] - losses[better],
    )


def _unit(growths: list[_Growths]) -> int:
    """Return the greatest common divisor of all numbers of parameters."""
    sizes = np.concatenate([growth.parameters for growth in growths])
    return int(np.gcd.reduce(sizes)) if sizes.size else 1


def _grow_best(choice: Choice, left: int, growths: list[_Growths]) -> int:
    """Apply the growths of largest total gain to `choice` and return the parameters they take.

    This is a knapsack with at most one growth per module, solved by dynamic programming.
    """
    growths = [growth for growth in (each.within(left) for each in growths) if growth.options.size]
    if not growths:
        return 0
    unit = _unit(growths)
    capacity = left // unit
    gained = np.zeros(capacity + 1)
    decisions = []
    for growth in growths:
        gained, decision = _with_module(gained, growth, unit)
        decisions.append(decision)
    position = capacity
    for growth, decision in zip(reversed(growths), reversed(decisions), strict=True):
        option = int(decision[position])
        if option >= 0:
            choice[growth.module] = growth.options[option]
            position -= int(growth.parameters[option]) // unit
    # The final position is the part of the capacity that was not used.
    return (capacity - position) * unit


def _with_module(
    gained: NDArray[np.float64], growth: _Growths, unit: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Add a module to the dynamic program.

    Args:
        gained: largest gain by units spent, without the module, (units + 1,).
        growth: the module's options.
        unit: parameters of a unit.

    Returns:
        Largest gain with the module, and its option (-1 for none), by units spent.
    """
    best = gained.copy()
    decision = np.full(gained.shape, -1, dtype=np.int32)
    for index, (cost, gain) in enumerate(zip(growth.parameters // unit, growth.gains, strict=True)):
        with_option = gained[: len(gained) - cost] + gain
        better = with_option > best[cost:]
        best[cost:][better] = with_option[better]
        decision[cost:][better] = index
    return best, decision


def _fill_up(table: OptionTable, choice: Choice, left: int) -> None:
    """Apply options that still fit, the best gain per parameter first, the largest among ties."""
    rows = np.arange(len(choice))
    while left > 0:
        extra = table.parameters - table.parameters[rows, choice][:, None]
        gain = table.losses[rows, choice][:, None] - table.losses
        fits = (extra > 0) & (extra <= left) & (gain >= 0.0)
        if not fits.any():
            return
        value = np.where(fits, gain / np.where(fits, extra, 1), -1.0)
        tied = np.where(value == value.max(), extra, 0)
        row, option = np.unravel_index(np.argmax(tied), tied.shape)
        left -= int(extra[row, option])
        choice[row] = option


_FALL = 2.0**-20
"""Factor from a multiplier that is too high to a possible lower bound."""


def lagrangian_plan(
    curves: ModelCurves,
    budget: int,
    *,
    module_cap: float = 0.9,
    constraint: ShapeConstraint = FREE,
) -> ScoredPlan:
    """Choose every layer's shapes.

    Args:
        curves: of all layers, in the same unit of loss.
        budget: maximum compressible parameters of all layers.
        module_cap: largest fraction of a module's parameters that may be removed, unless the
            constraint allows removing it whole.
        constraint: of the target.

    Returns:
        A plan of at most `budget` parameters.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes exceed the budget.
        ConfigurationError: if the allowed shapes leave more of it unused than the tolerance.
    """
    best: _Solution | None = None
    for table in option_tables(curves, constraint, module_cap):
        if best is None or best.may_be_beaten(table, budget):
            solution = _solve(table, budget)
            if solution is not None and (best is None or solution.loss < best.loss):
                best = solution
    if best is None:
        raise _out_of_reach(curves, budget, module_cap, constraint)
    plan = best.table.plan(best.choice)
    _require_spent(plan, curves, budget, constraint)
    return plan


@dataclass(frozen=True, kw_only=True, eq=False)
class _Solution:
    """The best choice from one table."""

    table: OptionTable
    choice: Choice
    loss: float
    multiplier: float

    def may_be_beaten(self, table: OptionTable, budget: int) -> bool:
        """Return whether another table may have a better choice within the budget.

        The dual bound `loss + μ · (parameters - budget)` of its best options at this multiplier is
        a lower bound of the loss of every such choice.
        """
        vertex = _best_options(table, self.multiplier)
        return vertex.loss + self.multiplier * (vertex.parameters - budget) < self.loss


def _solve(table: OptionTable, budget: int) -> _Solution | None:
    """Return the best choice from a table; None if its smallest options exceed the budget."""
    bracket = _bracket(table, budget)
    if bracket is None:
        return None
    choice = _within(table, bracket, budget)
    loss = _vertex(table, choice).loss
    return _Solution(table=table, choice=choice, loss=loss, multiplier=bracket.multiplier)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Vertex:
    """A choice with its sums over all modules."""

    choice: Choice
    parameters: int
    loss: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bracket:
    """Neighbouring vertices, one within the budget, the other beyond it or the same."""

    fitting: _Vertex
    exceeding: _Vertex

    @property
    def multiplier(self) -> float:
        """Return the loss per parameter at which both vertices are equally good."""
        extra = self.exceeding.parameters - self.fitting.parameters
        return (self.fitting.loss - self.exceeding.loss) / extra if extra else 0.0


def _bracket(table: OptionTable, budget: int) -> _Bracket | None:
    """Find the bracket of the budget; None if even the smallest options exceed it."""
    smallest = _vertex(table, np.argmax(np.isfinite(table.losses), axis=1))
    if smallest.parameters > budget:
        return None
    unconstrained = _best_options(table, 0.0)
    if unconstrained.parameters <= budget:
        return _Bracket(fitting=unconstrained, exceeding=unconstrained)
    bracket = _Bracket(fitting=smallest, exceeding=unconstrained)
    low, high, bisect = 0.0, np.inf, False
    while True:
        # The tangent's multiplier ends exactly; bisection in between converges faster.
        tangent = multiplier = bracket.multiplier
        if bisect and np.isfinite(high):
            multiplier = float(np.sqrt(max(low, high * _FALL) * high))
        vertex = _best_options(table, multiplier)
        inside = bracket.fitting.parameters < vertex.parameters < bracket.exceeding.parameters
        if not inside and multiplier == tangent:
            return bracket
        if vertex.parameters <= budget:
            high = min(high, multiplier)
            fitting = vertex if inside else bracket.fitting
            bracket = _Bracket(fitting=fitting, exceeding=bracket.exceeding)
        else:
            low = max(low, multiplier)
            exceeding = vertex if inside else bracket.exceeding
            bracket = _Bracket(fitting=bracket.fitting, exceeding=exceeding)
        bisect = not bisect


def _best_options(table: OptionTable, multiplier: float) -> _Vertex:
    """Return every module's best option at a multiplier, the smallest among ties."""
    return _vertex(table, np.argmin(table.losses + multiplier * table.parameters, axis=1))


def _vertex(table: OptionTable, choice: Choice) -> _Vertex:
    """Return a choice with its parameters and loss."""
    rows = np.arange(len(choice))
    return _Vertex(
        choice=choice,
        parameters=int(table.parameters[rows, choice].sum()),
        loss=float(table.losses[rows, choice].sum()),
    )


def _within(table: OptionTable, bracket: _Bracket, budget: int) -> Choice:
    """Move from the fitting towards the exceeding vertex module by module, then in small steps."""
    choice = bracket.fitting.choice.copy()
    left = budget - bracket.fitting.parameters
    rows, target = np.arange(len(choice)), bracket.exceeding.choice
    extra = (table.parameters[rows, target] - table.parameters[rows, choice]).tolist()
    # All undecided modules gain the same loss per parameter, the multiplier.
    for module, parameters in enumerate(extra):
        if parameters > left:
            return spend_remainder(table, choice, left, module=module, span=parameters)
        choice[module] = target[module]
        left -= parameters
    return spend_remainder(table, choice, left)


def _out_of_reach(
    curves: ModelCurves, budget: int, module_cap: float, constraint: ShapeConstraint
) -> BudgetOutOfReachError:
    """Return the error for a budget below the smallest allowed shapes."""
    minimum = min(
        _vertex(table, np.argmax(np.isfinite(table.losses), axis=1)).parameters
        for table in option_tables(curves, constraint, module_cap)
    )
    return BudgetOutOfReachError(
        f"the budget keeps {budget:,} compressible parameters, but {minimum:,} cannot be removed",
        field="compression.module_cap",
        hint="remove less, or allow a larger module_cap or a smaller round_to",
    )


def _require_spent(
    plan: ScoredPlan, curves: ModelCurves, budget: int, constraint: ShapeConstraint
) -> None:
    """Raise if the plan leaves more of the budget unused than the tolerance.

    Raises:
        ConfigurationError: naming the parameters of both.
    """
    dense = curves.geometry.dense_plan().parameters(curves.geometry)
    parameters, maximum = plan.plan.parameters(curves.geometry), min(budget, dense)
    if maximum - parameters > constraint.tolerance * maximum:
        raise ConfigurationError(
            f"rounding leaves {parameters:,} compressible parameters, the budget is {maximum:,}",
            field="compression.round_to",
            hint="choose a smaller round_to or another budget",
        )
