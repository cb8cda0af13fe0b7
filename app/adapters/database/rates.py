"""Rows of `rates`: the last measured speed of each class of machines."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import rates
from app.domain.validation import Rate
from intraslice_core.progress import Stage


def record(
    transaction: Transaction, device: str, method: str, per_second: Mapping[Stage, float]
) -> None:
    """Replace the rates of a device; stages in one order, so that two writers cannot deadlock."""
    if not per_second:
        return
    new = insert(rates).values(
        [
            {"device": device, "method": method, "stage": stage, "per_second": per_second[stage]}
            for stage in sorted(per_second)
        ]
    )
    transaction.execute(
        new.on_conflict_do_update(
            constraint="pk_rates",
            set_={"per_second": new.excluded.per_second, "measured_at": func.now()},
        )
    )


def of_method(transaction: Transaction, method: str) -> list[Rate]:
    rows = transaction.execute(select(rates).where(rates.c.method == method))
    return [
        Rate(
            device=row.device,
            stage=Stage(row.stage),
            per_second=row.per_second,
            measured_at=row.measured_at,
        )
        for row in rows
    ]
