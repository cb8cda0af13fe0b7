"""Rows of `sweeps`; the jobs of a sweep point at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, Row, select
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs, sweeps
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.sweep import Sweep, SweepProgress, SweepRequest
from intraslice_core.config import CompressionSettings, EvaluationConfig

_HIDDEN = {"idempotency_key", "request_hash"}
_COLUMNS = tuple(column for column in sweeps.c if column.name not in _HIDDEN)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Whose sweep it is, and which request of theirs made it."""

    project_id: str
    idempotency_key: str | None
    request_hash: str


def insert_sweep(
    transaction: Transaction, sweep_id: str, request: SweepRequest, claim: Claim
) -> Sweep | None:
    """The new sweep; None if the key was used before.

    A request with the same key that is being served right now makes this one wait for its end,
    up to the lock timeout.
    """
    row = transaction.execute(
        insert(sweeps)
        .values(
            id=sweep_id,
            project_id=claim.project_id,
            model=request.model.model_dump(mode="json"),
            compression=request.compression.model_dump(mode="json"),
            ratios=list(request.ratios),
            evaluation=request.evaluation and request.evaluation.model_dump(mode="json"),
            labels=request.labels,
            idempotency_key=claim.idempotency_key,
            request_hash=claim.request_hash,
        )
        .on_conflict_do_nothing(constraint="uq_sweeps_idempotency_key")
        .returning(*_COLUMNS)
    ).one_or_none()
    return _sweep(row) if row is not None else None


def find_claimed(transaction: Transaction, claim: Claim) -> tuple[Sweep, str]:
    """The sweep that has taken the key, and the hash of the request that made it."""
    row = transaction.execute(
        select(sweeps).where(
            sweeps.c.project_id == claim.project_id,
            sweeps.c.idempotency_key == claim.idempotency_key,
        )
    ).one()
    return _sweep(row), row.request_hash


def find(transaction: Transaction, project_id: str, sweep_id: str) -> Sweep | None:
    query = select(*_COLUMNS).where(sweeps.c.id == sweep_id, sweeps.c.project_id == project_id)
    row = transaction.execute(query).one_or_none()
    return _sweep(row) if row is not None else None


def newest(
    transaction: Transaction, project_id: str, *, limit: int, before: str | None
) -> list[Sweep]:
    """Sweeps of a project older than `before`, newest first; ids sort by time."""
    query = (
        select(*_COLUMNS)
        .where(sweeps.c.project_id == project_id)
        .order_by(sweeps.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(sweeps.c.id < before)
    return [_sweep(row) for row in transaction.execute(query)]


def progress(transaction: Transaction, sweep_ids: Sequence[str]) -> dict[str, SweepProgress]:
    """How far each sweep is, by its id."""
    fraction = jobs.c.progress["fraction"].astext.cast(Float)
    query = select(jobs.c.sweep_id, jobs.c.state, fraction.label("fraction")).where(
        jobs.c.sweep_id.in_(sweep_ids)
    )
    told: dict[str, list[tuple[State, float | None]]] = {one: [] for one in sweep_ids}
    for row in transaction.execute(query):
        told[row.sweep_id].append((State(row.state), row.fraction))
    return {sweep_id: SweepProgress.of(jobs) for sweep_id, jobs in told.items()}


def _sweep(row: Row[Any]) -> Sweep:
    return Sweep(
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        model=ModelSource.model_validate(row.model),
        compression=CompressionSettings.model_validate(row.compression),
        ratios=tuple(row.ratios),
        evaluation=row.evaluation and EvaluationConfig.model_validate(row.evaluation),
        labels=row.labels,
    )
