"""Rows of `jobs` as records, and the guarded UPDATE by which every statement changes them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    Row,
    and_,
    case,
    cast,
    extract,
    func,
    select,
    update,
)

from app.adapters.database import workers
from app.adapters.database.engine import Transaction
from app.adapters.database.queue_positions import positions
from app.adapters.database.tables import jobs
from app.domain.job import JobRecord, JobUrls, Lease
from app.domain.lifecycle import LEASED, TRANSITIONS, Action, State
from app.domain.worker import Requirement, waiting_reason

# The report is long and rarely wanted; lease and hint times mean nothing outside the database.
_HIDDEN = {
    "report",
    "lease_expires_at",
    "event_sequence",
    "hints",
    "next_hint_at",
    "settled_at",
    "queued_at",
    "device_number",
    "further_device_numbers",
    "artifacts_checked_at",
    "artifacts_missing_at",
}
COLUMNS: tuple[ColumnElement[Any], ...] = (
    *(column for column in jobs.c if column.name not in _HIDDEN),
    jobs.c.artifacts_missing_at.is_not(None).label("artifacts_missing"),
)
_NAMES = tuple(str(column.key) for column in COLUMNS)

FIRST_HINT_SECONDS = 60
_CLAIMED_AT = case((jobs.c.lease_owner.is_not(None), jobs.c.claimed_at))
_WORKED = func.coalesce(cast(extract("epoch", func.now() - _CLAIMED_AT), Float), 0.0)
"""Seconds since a worker claimed the job; 0 if none runs it."""
NO_LEASE: dict[str, Any] = {
    "lease_owner": None,
    "lease_expires_at": None,
    "worked_seconds": jobs.c.worked_seconds + _WORKED,
}
"""Values of a job that no worker runs any longer, with the time that the last one worked on it."""


def fetch(
    transaction: Transaction, statement: Executable, values: dict[str, Any] | None = None
) -> list[JobRecord]:
    """Return the jobs of a statement that selects or returns `COLUMNS`."""
    records = [_record(row) for row in transaction.execute(statement, values).all()]
    return _with_reasons(transaction, records)


def fetch_one(
    transaction: Transaction, statement: Executable, values: dict[str, Any] | None = None
) -> JobRecord | None:
    """Return the only job of a statement, or None without one."""
    row = transaction.execute(statement, values).one_or_none()
    return None if row is None else _with_reasons(transaction, [_record(row)])[0]


def change(transaction: Transaction, guard: ColumnElement[bool], **values: Any) -> JobRecord | None:
    """Change the job for which the guard holds; None if it holds for none."""
    statement = update(jobs).where(guard).values(**values).returning(*COLUMNS)
    return fetch_one(transaction, statement)


def enqueue(
    transaction: Transaction, guard: ColumnElement[bool], action: Action, **values: Any
) -> JobRecord | None:
    """Queue a job again by an action that does so."""
    return change(
        transaction,
        guard,
        state=TRANSITIONS[action].target,
        stage=None,
        progress=None,
        hints=0,
        queued_at=func.now(),
        next_hint_at=from_now(FIRST_HINT_SECONDS),
        **values,
    )


def finish(
    transaction: Transaction, guard: ColumnElement[bool], action: Action, **values: Any
) -> JobRecord | None:
    """End a job by an action that does so."""
    return change(
        transaction,
        guard,
        state=TRANSITIONS[action].target,
        finished_at=func.now(),
        next_hint_at=None,
        **NO_LEASE,
        **values,
    )


def guarded(action: Action, job_id: str) -> ColumnElement[bool]:
    """Return the lifecycle table as SQL, a condition that holds where the action is legal."""
    return and_(jobs.c.id == job_id, jobs.c.state.in_(TRANSITIONS[action].sources))


def owned(lease: Lease) -> ColumnElement[bool]:
    """Return the condition that this claim is the current one."""
    return and_(
        jobs.c.id == lease.job_id,
        jobs.c.state.in_(LEASED),
        jobs.c.fencing_token == lease.token,
        jobs.c.lease_owner == lease.owner,
    )


def unclaimed() -> ColumnElement[bool]:
    """Return the condition that no worker runs the job."""
    return jobs.c.state.not_in(LEASED)


def seconds(number: ColumnElement[int]) -> ColumnElement[Any]:
    """Return a column of seconds as an interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, number)


def from_now(duration: float) -> ColumnElement[Any]:
    """Return the time in so many seconds, by the database's clock: workers' clocks may differ."""
    return func.now() + timedelta(seconds=duration)


def _record(row: Row[Any]) -> JobRecord:
    """Return the job of a row. One validation makes the enumerations and nested models too."""
    values = dict(zip(_NAMES, row, strict=True))
    return JobRecord.model_validate(values | {"urls": JobUrls.of(values["id"])})


def _without_those_that_left(
    transaction: Transaction, records: list[JobRecord], places: Mapping[str, int]
) -> list[JobRecord]:
    """Return the jobs, those read again that left the queue before the places were read."""
    left = [job.id for job in records if job.state is State.QUEUED and job.id not in places]
    if not left:
        return records
    rows = transaction.execute(select(*COLUMNS).where(jobs.c.id.in_(left))).all()
    current = {job.id: job for job in map(_record, rows)}
    return [current.get(job.id, job) for job in records]


def _with_reasons(transaction: Transaction, records: list[JobRecord]) -> list[JobRecord]:
    """Return the jobs, the queued ones with the reason why no registered worker can run them.

    The reason is computed from the live registrations at every reading and stored nowhere, as is
    the place in the queue.
    """
    places = positions(transaction, records)
    records = _without_those_that_left(transaction, records, places)
    if not any(record.state is State.QUEUED for record in records):
        return records
    registered = workers.live_registrations(transaction)
    return [
        record.model_copy(
            update={
                "queue_position": places.get(record.id),
                "waiting": waiting_reason(
                    Requirement.of(record.compression, record.memory), registered
                ),
            }
        )
        if record.state is State.QUEUED
        else record
        for record in records
    ]
