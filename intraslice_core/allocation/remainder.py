"""What a Lagrangian leaves of a budget, spent on single modules' next sizes.

The sizes that modules may grow to within the remainder are a knapsack, solved exactly by dynamic
programming over the parameters spent; what gains nothing is used only to fill up the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intraslice_core.allocation.options import Choice, OptionTable

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
