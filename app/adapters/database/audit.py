"""Rows of `audit`: appended, never changed."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, delete, func, insert, select

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import audit
from app.domain.audit import Attempt, AuditEntry


def append(transaction: Transaction, entry_id: str, attempt: Attempt) -> None:
    transaction.execute(insert(audit).values(id=entry_id, **asdict(attempt)))


def newest(
    transaction: Transaction, project_id: str, *, limit: int, before: str | None
) -> list[AuditEntry]:
    """Return a project's entries older than `before`, newest first; ids sort by time."""
    query = (
        select(audit)
        .where(audit.c.project_id == project_id)
        .order_by(audit.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(audit.c.id < before)
    return [_entry(row) for row in transaction.execute(query)]


def remove_older(transaction: Transaction, age: timedelta, limit: int) -> int:
    """Remove the oldest entries and return how many; ids sort by time, which avoids a scan."""
    oldest = select(audit.c.id, audit.c.created_at).order_by(audit.c.id).limit(limit).subquery()
    old = select(oldest.c.id).where(oldest.c.created_at < func.now() - age)
    return transaction.execute(delete(audit).where(audit.c.id.in_(old))).rowcount


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        created_at=row.created_at,
        project=row.project_id,
        key=row.key_id,
        method=row.method,
        route=row.route,
        object_id=row.object_id,
        status=row.status,
        request_id=row.request_id,
    )
