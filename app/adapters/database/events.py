"""Rows of `events`: appended, never changed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update

from app.adapters.database import webhook_deliveries
from app.adapters.database.engine import Transaction
from app.adapters.database.notifications import announcement
from app.adapters.database.tables import events, jobs
from app.domain.events import Event, EventType


def append(
    transaction: Transaction, job_id: str, kind: EventType, data: dict[str, Any] | None = None
) -> None:
    """Number the event and insert it; the job's row is locked, so numbers rise with time.

    Log lines of the job take numbers of the same sequence.

    This also queues the deliveries to the project's webhooks and notifies watchers of the job, so
    callers need to do neither.
    """
    sequence, attempt, project_id, _ = transaction.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(event_sequence=jobs.c.event_sequence + 1)
        .returning(
            jobs.c.event_sequence, jobs.c.attempt, jobs.c.project_id, announcement(jobs.c.id)
        )
    ).one()
    created_at = transaction.execute(
        insert(events)
        .values(job_id=job_id, sequence=sequence, type=kind, attempt=attempt, data=data or {})
        .returning(events.c.created_at)
    ).scalar_one()
    webhook_deliveries.announce(transaction, project_id, job_id, kind, created_at)


def following(transaction: Transaction, job_id: str, *, after: int, limit: int) -> list[Event]:
    rows = transaction.execute(
        select(events)
        .where(events.c.job_id == job_id, events.c.sequence > after)
        .order_by(events.c.sequence)
        .limit(limit)
    )
    return [Event.model_validate(row, from_attributes=True) for row in rows]
