"""Rows of `outbox`: messages that have not reached the broker yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import outbox


@dataclass(frozen=True, kw_only=True)
class PendingMessage:
    """Wake somebody for this job."""

    id: int
    job_id: str


def add(transaction: Transaction, job_id: str) -> None:
    """Becomes true together with the change it announces."""
    transaction.execute(insert(outbox).values(job_id=job_id))


def lock_pending(transaction: Transaction, limit: int) -> list[PendingMessage]:
    """Oldest first; what another dispatcher is sending is skipped."""
    rows = transaction.execute(
        select(outbox.c.id, outbox.c.job_id)
        .order_by(outbox.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [PendingMessage(id=row.id, job_id=row.job_id) for row in rows]


def remove(transaction: Transaction, ids: Sequence[int]) -> None:
    transaction.execute(delete(outbox).where(outbox.c.id.in_(ids)))
