"""Rows of `outbox`: messages that have not reached the broker yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, extract, func, insert, select

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import outbox


@dataclass(frozen=True, kw_only=True)
class PendingMessage:
    """A message that wakes a worker for a job."""

    id: int
    job_id: str


def add(transaction: Transaction, job_id: str) -> None:
    """Add a message that becomes visible together with the change it announces."""
    transaction.execute(insert(outbox).values(job_id=job_id))


def lock_pending(transaction: Transaction, limit: int) -> list[PendingMessage]:
    """Return the oldest messages, locked; those that another dispatcher has locked are skipped."""
    rows = transaction.execute(
        select(outbox.c.id, outbox.c.job_id)
        .order_by(outbox.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [PendingMessage(id=row.id, job_id=row.job_id) for row in rows]


def remove(transaction: Transaction, ids: Sequence[int]) -> None:
    """Remove messages that the broker has accepted."""
    transaction.execute(delete(outbox).where(outbox.c.id.in_(ids)))


def count(transaction: Transaction) -> tuple[int, float]:
    """Return the number of messages and the age of the oldest in seconds."""
    age = extract("epoch", func.now() - func.min(outbox.c.created_at))
    number, oldest = transaction.execute(
        select(func.count(), func.coalesce(age, 0)).select_from(outbox)
    ).one()
    return int(number), float(oldest)
