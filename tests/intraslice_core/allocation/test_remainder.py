"""The remainder of a budget is spent where it gains most."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intraslice_core.allocation.lagrangian import spend_remainder
from intraslice_core.allocation.options import Choice, OptionTable, option_tables
from intraslice_core.plan import FREE, ModelGeometry
from tests.intraslice_core.allocation.instances import (
    Option,
    best_loss,
    model_curves,
    small_geometries,
)


def loss_of(table: OptionTable, choice: Choice) -> float:
    return float(table.losses[np.arange(len(choice)), choice].sum())


def parameters_of(table: OptionTable, choice: Choice) -> int:
    return int(table.parameters[np.arange(len(choice)), choice].sum())


def larger_sizes(table: OptionTable, choice: Choice) -> list[list[Option]]:
    """Return each module's current option and all larger ones."""
    shape = table.curves.geometry.dense_layer()
    return [
        [
            Option(parameters=int(table.parameters[row, option]), loss=loss, shape=shape)
            for option in range(choice[row], table.losses.shape[1])
            if np.isfinite(loss := float(table.losses[row, option]))
        ]
        for row in range(len(choice))
    ]


@settings(max_examples=200, deadline=None)
@given(
    geometry=small_geometries(),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.0, 1.0, exclude_max=True),
)
def test_remainder_gains_as_much_as_any_larger_sizes_within_it(
    geometry: ModelGeometry, seed: int, share: float
) -> None:
    curves = model_curves(geometry, 2, seed)
    (table,) = option_tables(curves, FREE, 1.0)
    choice = np.argmax(np.isfinite(table.losses), axis=1)
    before = choice.copy()
    span = int(table.parameters[0].max() - table.parameters[0, choice[0]])
    left = int(share * span)
    grown = spend_remainder(table, choice, left, module=0, span=span)
    assert (choice == before).all()
    spent = parameters_of(table, grown) - parameters_of(table, choice)
    assert 0 <= spent <= left
    best = best_loss(larger_sizes(table, choice), parameters_of(table, choice) + left)
    assert loss_of(table, grown) == pytest.approx(best, rel=1e-9, abs=1e-12)
