"""Rows of `log_lines`: appended by the worker that has the lease, the oldest removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Row,
    Text,
    cast,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    union_all,
    update,
)

from app.adapters.database.engine import Transaction
from app.adapters.database.job_rows import owned
from app.adapters.database.notifications import announcement
from app.adapters.database.tables import events, jobs, log_lines
from app.domain.events import Event
from app.domain.job import Lease
from app.domain.job_log import (
    MOST_BYTES,
    MOST_LINES,
    Entry,
    LogLevel,
    LogLine,
    NewLogLine,
)


def append(transaction: Transaction, lease: Lease, lines: Sequence[NewLogLine]) -> bool:
    """Number the lines after the job's last event or line, and insert them.

    Older lines beyond `MOST_LINES` or `MOST_BYTES` are removed. Watchers of the job are notified.

    Returns:
        False if the lease is lost, and nothing was written.
    """
    numbered = transaction.execute(
        update(jobs)
        .where(owned(lease))
        .values(event_sequence=jobs.c.event_sequence + len(lines))
        .returning(jobs.c.event_sequence, jobs.c.attempt, announcement(jobs.c.id))
    ).one_or_none()
    if numbered is None:
        return False
    first = numbered.event_sequence - len(lines) + 1
    rows = [
        {
            "job_id": lease.job_id,
            "sequence": sequence,
            "time": line.time,
            "attempt": numbered.attempt,
            "level": line.level,
            "event": line.event,
            "fields": dict(line.fields),
            "bytes": line.bytes,
        }
        for sequence, line in enumerate(lines, first)
    ]
    transaction.execute(insert(log_lines), rows)
    _trim(transaction, lease.job_id)
    return True


def _trim(transaction: Transaction, job_id: str) -> None:
    """Remove the oldest lines of a job beyond the bounds."""
    newest_first = log_lines.c.sequence.desc()
    counted = (
        select(
            log_lines.c.sequence,
            func.row_number().over(order_by=newest_first).label("number"),
            func.sum(log_lines.c.bytes).over(order_by=newest_first).label("total"),
        )
        .where(log_lines.c.job_id == job_id)
        .subquery()
    )
    excess = select(counted.c.sequence).where(
        or_(counted.c.number > MOST_LINES, counted.c.total > MOST_BYTES)
    )
    transaction.execute(
        delete(log_lines).where(log_lines.c.job_id == job_id, log_lines.c.sequence.in_(excess))
    )


def following(
    transaction: Transaction,
    job_id: str,
    *,
    after: int,
    limit: int,
    level: LogLevel = LogLevel.DEBUG,
) -> list[LogLine]:
    """Return the lines of at least this level whose sequence number is above `after`."""
    rows = transaction.execute(
        select(log_lines)
        .where(
            log_lines.c.job_id == job_id,
            log_lines.c.sequence > after,
            log_lines.c.level.in_(level.and_above()),
        )
        .order_by(log_lines.c.sequence)
        .limit(limit)
    )
    return [LogLine.model_validate(row, from_attributes=True) for row in rows]


def entries(transaction: Transaction, job_id: str, *, after: int, limit: int) -> list[Entry]:
    """Return events and lines together, in the order of their sequence numbers.

    One statement reads both: of two, the second would see numbers that were committed since, and
    a reader who continues after the largest would miss a smaller one.
    """
    of_events = select(
        events.c.sequence,
        events.c.created_at.label("time"),
        events.c.attempt,
        cast(null(), Text).label("level"),
        events.c.type.label("name"),
        events.c.data,
    ).where(events.c.job_id == job_id, events.c.sequence > after)
    of_lines = select(
        log_lines.c.sequence,
        log_lines.c.time,
        log_lines.c.attempt,
        log_lines.c.level,
        log_lines.c.event,
        log_lines.c.fields,
    ).where(log_lines.c.job_id == job_id, log_lines.c.sequence > after)
    both = union_all(of_events, of_lines).subquery()
    rows = transaction.execute(select(both).order_by(both.c.sequence).limit(limit))
    return [_entry(row) for row in rows]


def _entry(row: Row[Any]) -> Entry:
    """Return the line of a row that has a level, else the event."""
    if row.level is None:
        return Event(
            sequence=row.sequence,
            type=row.name,
            created_at=row.time,
            attempt=row.attempt,
            data=row.data,
        )
    return LogLine(
        sequence=row.sequence,
        time=row.time,
        attempt=row.attempt,
        level=row.level,
        event=row.name,
        fields=row.data,
    )
