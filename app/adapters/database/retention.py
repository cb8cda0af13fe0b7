"""Rows of `jobs` for retention: files to remove, and files removed.

A job that has ended is *settled* once what its attempts left behind is removed; it then gets its
`expires_at`. When that has come, `expired_at` is set first and `expires_at` cleared last, after
the objects: whoever is interrupted between the two is found, and continued, by the next.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, delete, func, or_, select, update

from app.adapters.database.engine import Transaction
from app.adapters.database.jobs import with_ids
from app.adapters.database.notifications import announce
from app.adapters.database.tables import (
    artifacts,
    events,
    generations,
    jobs,
    layer_files,
    log_lines,
)
from app.domain.events import EventType
from app.domain.job import Job, JobRecord
from app.domain.lifecycle import TERMINAL, State


def unchecked(
    transaction: Transaction,
    age: timedelta,
    missing_age: timedelta,
    *,
    after: str | None,
    limit: int,
) -> list[JobRecord]:
    """Return succeeded jobs with files whose last check is `age` ago, or was never, by id.

    Jobs whose files were missed then are checked again after `missing_age`.
    """
    due = func.now() - case((jobs.c.artifacts_missing_at.is_(None), age), else_=missing_age)
    query = (
        select(jobs.c.id)
        .where(
            jobs.c.state == State.SUCCEEDED,
            jobs.c.expired_at.is_(None),
            or_(jobs.c.artifacts_checked_at.is_(None), jobs.c.artifacts_checked_at <= due),
        )
        .order_by(jobs.c.id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(jobs.c.id > after)
    return with_ids(transaction, transaction.scalars(query).all())


def record_check(transaction: Transaction, job: JobRecord, *, missing: bool) -> None:
    """Write the outcome of a check, unless the job has expired since; announce a change."""
    since = func.coalesce(jobs.c.artifacts_missing_at, func.now()) if missing else None
    changed = transaction.execute(
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.state == State.SUCCEEDED, jobs.c.expired_at.is_(None))
        .values(artifacts_checked_at=func.now(), artifacts_missing_at=since)
    )
    if changed.rowcount and missing != job.artifacts_missing:
        announce(transaction, job.id)


def missing(transaction: Transaction) -> list[str]:
    """Return the ids of the jobs whose files were missed at their last check, oldest first."""
    query = select(jobs.c.id).where(jobs.c.artifacts_missing_at.is_not(None)).order_by(jobs.c.id)
    return list(transaction.scalars(query))


def count_missing(transaction: Transaction) -> int:
    """Return the number of succeeded jobs whose files were missed at their last check."""
    query = select(func.count()).select_from(jobs).where(jobs.c.artifacts_missing_at.is_not(None))
    return int(transaction.execute(query).scalar_one())


def unsettled(transaction: Transaction, limit: int | None) -> list[str]:
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


def unsettled_jobs(transaction: Transaction, limit: int | None) -> list[JobRecord]:
    """Return ended jobs whose left-overs may still be in the store."""
    return with_ids(transaction, unsettled(transaction, limit))


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


def due(transaction: Transaction, limit: int | None) -> list[JobRecord]:
    """Return the jobs whose files have expired, with those whose removal was interrupted."""
    return with_ids(transaction, transaction.scalars(_due(limit)).all())


def expire_due(transaction: Transaction, limit: int) -> list[JobRecord]:
    """Mark due jobs as expired; return them, with those whose removal was interrupted."""
    locked = _due(limit).with_for_update(skip_locked=True)
    expired = transaction.scalars(
        update(jobs)
        .where(jobs.c.id.in_(locked.scalar_subquery()))
        .values(expired_at=func.coalesce(jobs.c.expired_at, func.now()), artifacts_missing_at=None)
        .returning(jobs.c.id)
    )
    return with_ids(transaction, expired.all())


def _due(limit: int | None) -> Select[Any]:
    return (
        select(jobs.c.id)
        .where(jobs.c.expires_at < func.now(), ~jobs.c.pinned, _ended())
        .order_by(jobs.c.expires_at)
        .limit(limit)
    )


def finish_expiry(transaction: Transaction, job_id: str) -> None:
    """Delete rows of the job: removed objects, prompts, answers, log lines and progress events.

    Other events stay.
    """
    for table in (artifacts, layer_files, generations, log_lines):
        transaction.execute(delete(table).where(table.c.job_id == job_id))
    transaction.execute(
        delete(events).where(events.c.job_id == job_id, events.c.type == EventType.PROGRESS)
    )
    transaction.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.expired_at.is_not(None))
        .values(expires_at=None)
    )


def _ended() -> ColumnElement[bool]:
    return jobs.c.state.in_(TERMINAL)
