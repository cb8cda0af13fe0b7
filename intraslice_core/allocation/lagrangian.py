"""The least predicted loss within a budget (section 4 of docs/method.md, `lagrangian`).

For a price μ of a parameter every module by itself picks the option of least loss + μ · parameters.
The right μ is where the picks' parameters pass the budget; modules that are undecided there change
one by one as long as they fit. So far nothing with as few parameters has less loss. What then is
left over is less than the next module's change, and is spent on single rounding steps of whichever
modules gain most by it (`remainder`). Hence

* the loss is above the best possible by less than that one change of one module, and is the best
  possible where all modules have convex curves with equally large steps;
* a larger budget never costs more loss, except where the next change is so large that `remainder`
  looks at a part of the steps only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intraslice_core.allocation.curves import ModelCurves, ScoredPlan
from intraslice_core.allocation.options import Choice, OptionTable, option_tables
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.plan import FREE, ShapeConstraint

_MOST_CELLS = 30_000_000
"""Sizes times parameters spent; about a second of work."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Growths:
    """Larger sizes of one module that cost less loss."""

    module: int
    options: NDArray[np.intp]
    parameters: NDArray[np.int64]
    gains: NDArray[np.float64]

    def within(self, span: int) -> _Growths:
        """Those of at most `span` parameters."""
        kept = self.parameters <= span
        return _Growths(
            module=self.module,
            options=self.options[kept],
            parameters=self.parameters[kept],
            gains=self.gains[kept],
        )


def spend_remainder(
    table: OptionTable, choice: Choice, left: int, *, module: int = -1, span: int = 0
) -> Choice:
    """Let modules grow by at most `left` parameters together.

    Args:
        table: all options.
        choice: where modules stand; it is not changed.
        left: parameters that may be spent.
        module: the one whose next change is the best of all, but does not fit; -1 if there is none.
        span: that change's parameters, more than `left`. Which sizes are looked at depends on it
            and not on `left`, so that more to spend never gains less.
    """
    choice = choice.copy()
    if module >= 0 and left > 0:
        left -= _grow_best(choice, left, _candidates(table, choice, module, span))
    _fill_up(table, choice, left)
    return choice


def _candidates(table: OptionTable, choice: Choice, module: int, span: int) -> list[_Growths]:
    """All sizes within the span; if they are too many, all of `module` and the next of others."""
    everything = [_growths(table, choice, row).within(span - 1) for row in range(len(choice))]
    unit = _unit(everything)
    reach = span
    while True:
        found = [one if one.module == module else one.within(reach) for one in everything]
        found = [one for one in found if one.options.size]
        if reach <= 1 or sum(one.options.size for one in found) * (span // unit) <= _MOST_CELLS:
            return found
        reach //= 2


def _growths(table: OptionTable, choice: Choice, row: int) -> _Growths:
    here = choice[row]
    losses = table.losses[row, here:]
    # Only what undercuts every smaller size.
    before = np.minimum.accumulate(losses)
    better = np.flatnonzero(losses[1:] < before[:-1]) + 1
    return _Growths(
        module=row,
        options=here + better,
        parameters=table.parameters[row, here + better] - table.parameters[row, here],
        gains=losses[0] - losses[better],
    )


def _unit(growths: list[_Growths]) -> int:
    """What all parameters are multiples of."""
    sizes = np.concatenate([one.parameters for one in growths])
    return int(np.gcd.reduce(sizes)) if sizes.size else 1


def _grow_best(choice: Choice, left: int, growths: list[_Growths]) -> int:
    """Change `choice` to what gains most, and return the parameters that takes."""
    growths = [one for one in (each.within(left) for each in growths) if one.options.size]
    if not growths:
        return 0
    unit = _unit(growths)
    room = left // unit
    gained = np.zeros(room + 1)
    decisions = []
    for one in growths:
        gained, decision = _with_module(gained, one, unit)
        decisions.append(decision)
    spent = room
    for one, decision in zip(reversed(growths), reversed(decisions), strict=True):
        taken = int(decision[spent])
        if taken >= 0:
            choice[one.module] = one.options[taken]
            spent -= int(one.parameters[taken]) // unit
    # What was never spent stays at the bottom.
    return (room - spent) * unit


def _with_module(
    gained: NDArray[np.float64], one: _Growths, unit: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The most that is gained for every number of units spent, with one module more."""
    best = gained.copy()
    decision = np.full(gained.shape, -1, dtype=np.int32)
    for index, (cost, gain) in enumerate(zip(one.parameters // unit, one.gains, strict=True)):
        with_it = gained[: len(gained) - cost] + gain
        better = with_it > best[cost:]
        best[cost:][better] = with_it[better]
        decision[cost:][better] = index
    return best, decision


def _fill_up(table: OptionTable, choice: Choice, left: int) -> None:
    """Take what still fits, the best first, and of what gains nothing the largest."""
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
"""From a price at which too little is picked to one that may be low enough."""


def lagrangian_plan(
    curves: ModelCurves,
    budget: int,
    *,
    module_cap: float = 0.9,
    constraint: ShapeConstraint = FREE,
) -> ScoredPlan:
    """Choose every layer's shapes.

    Args:
        curves: what the modules offer, in one unit of loss.
        budget: compressible parameters of all layers that may stay.
        module_cap: no module loses more than this fraction of its parameters, unless the
            constraint allows that it is removed whole.
        constraint: what the target demands of the shapes.

    Returns:
        A plan of at most `budget` parameters.

    Raises:
        BudgetOutOfReachError: if the smallest allowed shapes have more.
        ConfigurationError: if the allowed shapes leave more of it unused than is tolerated.
    """
    best: _Solution | None = None
    for table in option_tables(curves, constraint, module_cap):
        if best is None or best.may_be_beaten(table, budget):
            found = _solve(table, budget)
            if found is not None and (best is None or found.loss < best.loss):
                best = found
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
    price: float

    def may_be_beaten(self, table: OptionTable, budget: int) -> bool:
        """No choice within the budget has less loss + price · parameters than all picks have."""
        picked = _picked(table, self.price)
        return picked.loss + self.price * (picked.parameters - budget) < self.loss


def _solve(table: OptionTable, budget: int) -> _Solution | None:
    bracket = _bracket(table, budget)
    if bracket is None:
        return None
    choice = _within(table, bracket, budget)
    loss = _vertex(table, choice).loss
    return _Solution(table=table, choice=choice, loss=loss, price=bracket.price)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Vertex:
    """What all modules pick at one price."""

    choice: Choice
    parameters: int
    loss: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bracket:
    """Neighbouring picks, of which one fits into the budget; the other does not, or is the same."""

    fitting: _Vertex
    exceeding: _Vertex

    @property
    def price(self) -> float:
        """Loss a parameter, at which both are equally good."""
        extra = self.exceeding.parameters - self.fitting.parameters
        return (self.fitting.loss - self.exceeding.loss) / extra if extra else 0.0


def _bracket(table: OptionTable, budget: int) -> _Bracket | None:
    """Find the price; None if even the smallest sizes do not fit."""
    smallest = _vertex(table, np.argmax(np.isfinite(table.losses), axis=1))
    if smallest.parameters > budget:
        return None
    cheapest = _picked(table, 0.0)
    if cheapest.parameters <= budget:
        return _Bracket(fitting=cheapest, exceeding=cheapest)
    bracket = _Bracket(fitting=smallest, exceeding=cheapest)
    low, high, halve = 0.0, np.inf, False
    while True:
        # The tangents' price is exact in the end, the middle of the known prices is fast before.
        tangent = bracket.price
        price = tangent
        if halve and np.isfinite(high):
            price = float(np.sqrt(max(low, high * _FALL) * high))
        vertex = _picked(table, price)
        inside = bracket.fitting.parameters < vertex.parameters < bracket.exceeding.parameters
        if not inside and price == tangent:
            return bracket
        if vertex.parameters <= budget:
            high = min(high, price)
            fitting = vertex if inside else bracket.fitting
            bracket = _Bracket(fitting=fitting, exceeding=bracket.exceeding)
        else:
            low = max(low, price)
            exceeding = vertex if inside else bracket.exceeding
            bracket = _Bracket(fitting=bracket.fitting, exceeding=exceeding)
        halve = not halve


def _picked(table: OptionTable, price: float) -> _Vertex:
    """Every module's best option; of equally good ones the smallest."""
    return _vertex(table, np.argmin(table.losses + price * table.parameters, axis=1))


def _vertex(table: OptionTable, choice: Choice) -> _Vertex:
    rows = np.arange(len(choice))
    return _Vertex(
        choice=choice,
        parameters=int(table.parameters[rows, choice].sum()),
        loss=float(table.losses[rows, choice].sum()),
    )


def _within(table: OptionTable, bracket: _Bracket, budget: int) -> Choice:
    """From the fitting picks towards the exceeding ones, module by module, then in small steps."""
    choice = bracket.fitting.choice.copy()
    left = budget - bracket.fitting.parameters
    rows, target = np.arange(len(choice)), bracket.exceeding.choice
    extra = (table.parameters[rows, target] - table.parameters[rows, choice]).tolist()
    # All undecided modules gain equally much by a parameter: it is the price.
    for module, parameters in enumerate(extra):
        if parameters > left:
            return spend_remainder(table, choice, left, module=module, span=parameters)
        choice[module] = target[module]
        left -= parameters
    return spend_remainder(table, choice, left)


def _out_of_reach(
    curves: ModelCurves, budget: int, module_cap: float, constraint: ShapeConstraint
) -> BudgetOutOfReachError:
    least = min(
        _vertex(table, np.argmax(np.isfinite(table.losses), axis=1)).parameters
        for table in option_tables(curves, constraint, module_cap)
    )
    return BudgetOutOfReachError(
        f"{budget:,} compressible parameters would stay, and {least:,} cannot be removed",
        field="compression.module_cap",
        hint="remove less, or allow a larger module_cap or a smaller round_to",
    )


def _require_spent(
    plan: ScoredPlan, curves: ModelCurves, budget: int, constraint: ShapeConstraint
) -> None:
    dense = curves.geometry.dense_plan().parameters(curves.geometry)
    got, wanted = plan.plan.parameters(curves.geometry), min(budget, dense)
    if wanted - got > constraint.tolerance * wanted:
        raise ConfigurationError(
            f"rounding leaves {got:,} compressible parameters where {wanted:,} were asked for",
            field="compression.round_to",
            hint="choose a smaller round_to or another budget",
        )
