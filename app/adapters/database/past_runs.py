"""Rows of `past_runs`: durations of finished jobs, by class of machines."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, select

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import past_runs
from intraslice_core.cost_model import PastRun
from intraslice_core.progress import Stage

KEPT_RUNS = 60
"""Newest runs that are kept of each class of machines: three methods' worth of a fit."""


@dataclass(frozen=True, kw_only=True)
class DeviceRuns:
    """Finished runs on one class of machines."""

    device: str
    runs: tuple[PastRun, ...]
    """Newest first; at least one."""
    measured_at: datetime
    """End of the newest."""


def record(transaction: Transaction, device: str, run: PastRun) -> None:
    """Add a finished run, and remove those that are too old to count."""
    row = {
        "device": device,
        "method": run.method,
        "work": dict(run.work),
        "seconds": dict(run.seconds),
        "predicted_seconds": run.predicted,
    }
    transaction.execute(insert(past_runs).values(row))
    newest = (
        select(past_runs.c.id)
        .where(past_runs.c.device == device)
        .order_by(past_runs.c.id.desc())
        .limit(KEPT_RUNS)
    )
    old = past_runs.c.id.not_in(newest)
    transaction.execute(delete(past_runs).where(past_runs.c.device == device, old))


def by_device(transaction: Transaction) -> list[DeviceRuns]:
    """Return the runs of every class of machines, that of the newest run first."""
    rows = transaction.execute(select(past_runs).order_by(past_runs.c.id.desc())).all()
    groups: dict[str, list[Row[Any]]] = {}
    for row in rows:
        groups.setdefault(row.device, []).append(row)
    return [
        DeviceRuns(
            device=device,
            runs=tuple(_run(row) for row in group),
            measured_at=group[0].measured_at,
        )
        for device, group in groups.items()
    ]


def _run(row: Row[Any]) -> PastRun:
    """Return the run of a row."""
    return PastRun(
        method=row.method,
        work={Stage(stage): seconds for stage, seconds in row.work.items()},
        seconds={Stage(stage): seconds for stage, seconds in row.seconds.items()},
        predicted=row.predicted_seconds,
    )
