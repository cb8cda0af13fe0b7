"""Rows of `jobs` for retention: files to remove, and files removed.

A job that has ended is *settled* once what its attempts left behind is removed; it then gets its
`expires_at`. When that has come, `expired_at` is set first and `expires_at` cleared last, after
the objects: whoever is interrupted between the two is found, and continued, by the next.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, func, or_, select, update

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import artifacts, events, jobs, layer_files
from app.domain.events import EventType
from app.domain.job import Job
from app.domain.lifecycle import TERMINAL


def unsettled(transaction: Transaction, limit: int) -> list[str]:
    """Return ended jobs whose left-overs may still be in the store."""
    query = (
        select(jobs.c.id)
        .where(
            jobs.c.finished_at.is_not(None),
            or_(jobs.c.settled_at.is_(None), jobs.c.settled_at < jobs.c.finished_at),
            _ended(),
        )
        .order_by(jobs.c.finished_at)
        .limit(limit)
    )
    return list(transaction.scalars(query))


def settle(transaction: Transaction, job: Job, lifetime: timedelta | None) -> None:
    """Mark as settled, unless the job was queued again, or ended again, since it was read."""
    transaction.execute(
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.finished_at == job.finished_at, _ended())
        .values(
            settled_at=func.now(),
            # From now on and not from the job's end: an older database, or one that kept
            # everything until today, must not lose its files on the first day.
            expires_at=None if lifetime is None else case((~jobs.c.pinned, func.now() + lifetime)),
        )
    )


def set_pinned(
    transaction: Transaction, job_id: str, *, pinned: bool, lifetime: timedelta | None
) -> bool:
    """Pin or unpin a job, which restarts its lifetime; return False if it has expired."""
    values: dict[str, Any] = {"pinned": pinned}
    if pinned:
        values["expires_at"] = None
    guard = and_(jobs.c.id == job_id, jobs.c.expired_at.is_(None))
    changed = transaction.execute(
        update(jobs).where(guard, jobs.c.pinned.is_(not pinned)).values(**values)
    )
    if changed.rowcount and not pinned:
        transaction.execute(
            update(jobs)
            .where(guard, jobs.c.settled_at.is_not(None), _ended())
            .values(expires_at=None if lifetime is None else func.now() + lifetime)
        )
    return bool(transaction.scalar(select(func.count()).select_from(jobs).where(guard)))


def expire_due(transaction: Transaction, limit: int) -> list[str]:
    """Mark due jobs as expired; return them, with those whose removal was interrupted."""
    due = (
        select(jobs.c.id)
        .where(jobs.c.expires_at < func.now(), ~jobs.c.pinned, _ended())
        .order_by(jobs.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(
        transaction.scalars(
            update(jobs)
            .where(jobs.c.id.in_(due.scalar_subquery()))
            .values(expired_at=func.coalesce(jobs.c.expired_at, func.now()))
            .returning(jobs.c.id)
        )
    )


def finish_expiry(transaction: Transaction, job_id: str) -> None:
    """Delete the rows of removed objects and the progress events; other events stay."""
    for table in (artifacts, layer_files):
        transaction.execute(delete(table).where(table.c.job_id == job_id))
    transaction.execute(
        delete(events).where(events.c.job_id == job_id, events.c.type == EventType.PROGRESS)
    )
    transaction.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.expired_at.is_not(None))
        .values(expires_at=None)
    )


def existing(transaction: Transaction, job_ids: Collection[str]) -> set[str]:
    """Return those of the ids that have a row."""
    return set(transaction.scalars(select(jobs.c.id).where(jobs.c.id.in_(job_ids))))


def _ended() -> ColumnElement[bool]:
    return jobs.c.state.in_(TERMINAL)
