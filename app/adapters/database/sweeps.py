"""Rows of `sweeps`, to which the rows of their jobs refer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Float, Row, select, update
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database import jobs as job_rows
from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs, sweeps
from app.domain.lifecycle import State
from app.domain.sweep import (
    Measured,
    Sweep,
    SweepDetails,
    SweepProgress,
    SweepRequest,
    SweepUrls,
    dense_size,
    in_order,
    pareto_table,
    size_checks,
)
from intraslice_core.config import MethodChoice
from intraslice_core.reports.sweep import SweepChild

_HIDDEN = {"idempotency_key", "request_hash"}
_COLUMNS = tuple(column for column in sweeps.c if column.name not in _HIDDEN)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The project and the creating request of a sweep."""

    project_id: str
    idempotency_key: str | None
    request_hash: str


def insert_sweep(
    transaction: Transaction, sweep_id: str, request: SweepRequest, claim: Claim
) -> bool:
    """Insert a sweep and return True, or False if its idempotency key was used before.

    A request with the same key that is being served right now makes this one wait for its end,
    up to the lock timeout.
    """
    inserted = transaction.scalar(
        insert(sweeps)
        .values(
            id=sweep_id,
            project_id=claim.project_id,
            model=request.model.model_dump(mode="json"),
            compression=request.compression.model_dump(mode="json"),
            ratios=list(request.ratios),
            methods=list(request.methods) or None,
            evaluation=request.evaluation and request.evaluation.model_dump(mode="json"),
            labels=request.labels,
            idempotency_key=claim.idempotency_key,
            request_hash=claim.request_hash,
        )
        .on_conflict_do_nothing(constraint="uq_sweeps_idempotency_key")
        .returning(sweeps.c.id)
    )
    return inserted is not None


def find_claimed(transaction: Transaction, claim: Claim) -> tuple[str, str]:
    """Return the id of the sweep with this idempotency key and the hash of its request."""
    row = transaction.execute(
        select(sweeps.c.id, sweeps.c.request_hash).where(
            sweeps.c.project_id == claim.project_id,
            sweeps.c.idempotency_key == claim.idempotency_key,
        )
    ).one()
    return row.id, row.request_hash


def find(transaction: Transaction, project_id: str, sweep_id: str) -> SweepDetails | None:
    """Return a sweep with its jobs, smallest ratio first."""
    query = select(*_COLUMNS).where(sweeps.c.id == sweep_id, sweeps.c.project_id == project_id)
    row = transaction.execute(query).one_or_none()
    if row is None:
        return None
    members = in_order(job_rows.of_sweep(transaction, sweep_id), _methods(row))
    progress = SweepProgress.of(
        (job.state, job.progress.fraction if job.progress else None) for job in members
    )
    points = pareto_table(members, _measured(transaction, sweep_id))
    return SweepDetails.model_validate(
        {
            **_values(row, progress),
            "urls": SweepUrls.of(sweep_id, [job.id for job in members]),
            "jobs": members,
            "pareto": points,
            "sizes": size_checks(points),
            "dense": dense_size(points, members),
        }
    )


def lock(transaction: Transaction, project_id: str, sweep_id: str) -> list[float] | None:
    """Lock a sweep until the end of the transaction; return its ratios, None if there is none."""
    query = select(sweeps.c.ratios).where(
        sweeps.c.id == sweep_id, sweeps.c.project_id == project_id
    )
    ratios: list[float] | None = transaction.scalar(query.with_for_update())
    return ratios


def children(transaction: Transaction, sweep_id: str) -> set[SweepChild]:
    """Return the methods and ratios for which a sweep has a job."""
    config = jobs.c.compression
    query = select(config["method"].label("method"), config["ratio"].label("ratio")).where(
        jobs.c.sweep_id == sweep_id
    )
    return {SweepChild.model_validate(row._asdict()) for row in transaction.execute(query)}


def set_ratios(transaction: Transaction, sweep_id: str, ratios: Sequence[float]) -> None:
    """Replace the ratios of a sweep."""
    transaction.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(ratios=[*ratios]))


def _measured(transaction: Transaction, sweep_id: str) -> dict[str, Measured]:
    """Return the measurements of every job with a report; reports are large and stay there."""
    report = jobs.c.report
    query = select(
        jobs.c.id,
        report["evaluation"]["perplexity"].label("perplexity"),
        report["evaluation"]["tasks"].label("tasks"),
        report["seconds"].astext.cast(Float).label("seconds"),
        report["peak_memory_bytes"].astext.cast(BigInteger).label("peak_memory_bytes"),
    ).where(jobs.c.sweep_id == sweep_id, report.is_not(None))
    return {row.id: Measured.of(row._asdict()) for row in transaction.execute(query)}


def newest(
    transaction: Transaction, project_id: str, *, limit: int, before: str | None
) -> list[Sweep]:
    """Return a project's sweeps older than `before`, newest first; ids sort by time."""
    query = (
        select(*_COLUMNS)
        .where(sweeps.c.project_id == project_id)
        .order_by(sweeps.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(sweeps.c.id < before)
    rows = transaction.execute(query).all()
    progress = read_progress(transaction, [row.id for row in rows])
    return [
        Sweep.model_validate({**_values(row, progress[row.id]), "urls": SweepUrls.of(row.id)})
        for row in rows
    ]


def read_progress(transaction: Transaction, sweep_ids: Sequence[str]) -> dict[str, SweepProgress]:
    """Return the progress of each sweep by its id."""
    fraction = jobs.c.progress["fraction"].astext.cast(Float)
    query = select(jobs.c.sweep_id, jobs.c.state, fraction.label("fraction")).where(
        jobs.c.sweep_id.in_(sweep_ids)
    )
    members: dict[str, list[tuple[State, float | None]]] = {sweep_id: [] for sweep_id in sweep_ids}
    for row in transaction.execute(query):
        members[row.sweep_id].append((State(row.state), row.fraction))
    return {sweep_id: SweepProgress.of(states) for sweep_id, states in members.items()}


def _values(row: Row[Any], progress: SweepProgress) -> dict[str, Any]:
    return {**row._mapping, "methods": _methods(row), "state": progress.state, "progress": progress}


def _methods(row: Row[Any]) -> list[MethodChoice]:
    """Return the compared methods; sweeps of one method name it in their settings alone."""
    return row.methods or [row.compression["method"]]
