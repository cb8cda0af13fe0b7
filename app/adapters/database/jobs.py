"""Rows of `jobs`: inserted, found, listed, counted, reminded of and deleted.

The claim and other uses of a lease are in `leases`, all other changes of a job's state in
`job_changes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from app.adapters.database.capability import DEVICES
from app.adapters.database.engine import Transaction
from app.adapters.database.job_rows import (
    COLUMNS,
    FIRST_HINT_SECONDS,
    fetch,
    fetch_one,
    from_now,
)
from app.adapters.database.tables import jobs
from app.adapters.database.tables.base import JSON
from app.domain.job import JobFilter, JobRecord, JobRequest
from app.domain.lifecycle import TERMINAL, State
from app.domain.worker import ANY_DTYPE, DeviceChoice, RequiredMemory, Requirement
from app.telemetry.traces import current_traceparent

# The most frequent queries are built once: building a statement takes longer than running it.
_FIND = select(*COLUMNS).where(jobs.c.id == bindparam("job_id"))
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "before": jobs.c.id < bindparam("before"),
    "states": jobs.c.state.in_(bindparam("states", expanding=True)),
    "model": jobs.c.model["ref"].astext == bindparam("model"),
    "sweep_id": jobs.c.sweep_id == bindparam("sweep_id"),
    "labels": jobs.c.labels.contains(bindparam("labels", type_=JSON)),
    "created_after": jobs.c.created_at > bindparam("created_after"),
    "created_before": jobs.c.created_at < bindparam("created_before"),
}
"""Conditions of a list of jobs, by the field of `JobFilter`."""
_UNRESTRICTED: tuple[Any, ...] = (None, frozenset(), {})

_LIVE = tuple(state for state in State if state not in TERMINAL)
_LONGEST_HINT_SECONDS = 3600


def insert_job(  # a row's worth
    transaction: Transaction,
    job_id: str,
    project_id: str,
    request: JobRequest,
    *,
    attempts: int,
    store_prefix: str,
    memory: RequiredMemory,
) -> JobRecord:
    statement = (
        insert(jobs)
        .values(
            id=job_id,
            project_id=project_id,
            sweep_id=request.sweep_id,
            state=State.QUEUED,
            model=request.model.model_dump(mode="json"),
            compression=request.compression.model_dump(mode="json"),
            evaluation=request.evaluation and request.evaluation.model_dump(mode="json"),
            labels=request.labels,
            priority=request.priority,
            max_runtime_s=request.max_runtime_s,
            max_pending_s=request.max_pending_s,
            max_attempts=attempts,
            store_prefix=store_prefix,
            gpu_bytes=memory.gpu_bytes,
            host_bytes=memory.host_bytes,
            traceparent=current_traceparent(),
            next_hint_at=from_now(FIRST_HINT_SECONDS),
        )
        .returning(*COLUMNS)
    )
    (job,) = fetch(transaction, statement)
    return job


def find(transaction: Transaction, job_id: str) -> JobRecord | None:
    return fetch_one(transaction, _FIND, {"job_id": job_id})


def lock(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Return the job, locked until the transaction ends."""
    query = select(*COLUMNS).where(jobs.c.id == job_id).with_for_update()
    return fetch_one(transaction, query)


def with_ids(transaction: Transaction, job_ids: Sequence[str]) -> list[JobRecord]:
    """Return the jobs in the order of the ids, without those that have no row."""
    records = fetch(transaction, select(*COLUMNS).where(jobs.c.id.in_(job_ids)))
    by_id = {job.id: job for job in records}
    return [by_id[job_id] for job_id in job_ids if job_id in by_id]


def set_labels(transaction: Transaction, job_id: str, labels: dict[str, str]) -> JobRecord:
    """Replace the labels of a job, which must exist."""
    statement = update(jobs).where(jobs.c.id == job_id).values(labels=labels).returning(*COLUMNS)
    (job,) = fetch(transaction, statement)
    return job


def find_report(transaction: Transaction, job_id: str) -> dict[str, Any] | None:
    report: dict[str, Any] | None = transaction.scalar(
        select(jobs.c.report).where(jobs.c.id == job_id)
    )
    return report


def newest(
    transaction: Transaction, project_id: str, criteria: JobFilter, *, limit: int
) -> list[JobRecord]:
    """Return a project's jobs that meet all criteria, newest first; ids sort by time."""
    wanted = {name: value for name, value in vars(criteria).items() if value not in _UNRESTRICTED}
    values = wanted | {"project_id": project_id, "limit": limit}
    return fetch(transaction, _page(frozenset(wanted)), values)


@cache
def _page(wanted: frozenset[str]) -> Select[Any]:
    """Return the query of a list with these criteria; there are a hundred at most."""
    conditions = [_CONDITIONS[name] for name in sorted(wanted)]
    return (
        select(*COLUMNS)
        .where(jobs.c.project_id == bindparam("project_id"), *conditions)
        .order_by(jobs.c.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )


def of_sweep(transaction: Transaction, sweep_id: str) -> list[JobRecord]:
    return fetch(transaction, select(*COLUMNS).where(jobs.c.sweep_id == sweep_id))


def is_over(transaction: Transaction, job_id: str) -> bool:
    """Return whether the job has ended or was deleted."""
    alive = select(func.count()).where(jobs.c.id == job_id, jobs.c.state.not_in(TERMINAL))
    return not transaction.scalar(alive)


def remove(transaction: Transaction, job_id: str) -> bool:
    """Delete a job that has ended, with its dependent rows; return False if it has not."""
    guard = and_(jobs.c.id == job_id, jobs.c.state.in_(TERMINAL))
    return transaction.execute(delete(jobs).where(guard)).rowcount == 1


def due_for_hint(transaction: Transaction, limit: int) -> list[str]:
    """Return queued jobs to send another message for, and double the pause until the next."""
    due = (
        select(jobs.c.id)
        .where(jobs.c.next_hint_at < func.now(), jobs.c.state == State.QUEUED)
        .order_by(jobs.c.next_hint_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    pause = func.least(
        FIRST_HINT_SECONDS * func.power(2, func.least(jobs.c.hints + 1, 10)), _LONGEST_HINT_SECONDS
    )
    changed = transaction.scalars(
        update(jobs)
        .where(jobs.c.id.in_(due.scalar_subquery()))
        .values(hints=jobs.c.hints + 1, next_hint_at=func.now() + timedelta(seconds=1) * pause)
        .returning(jobs.c.id)
    )
    return list(changed)


def count_live(transaction: Transaction, project_id: str | None = None) -> dict[State, int]:
    """Return the number of jobs in each state that is not terminal, of one project or of all."""
    query = select(jobs.c.state, func.count()).where(jobs.c.state.in_(_LIVE)).group_by(jobs.c.state)
    if project_id is not None:
        query = query.where(jobs.c.project_id == project_id)
    counts = {State(state): number for state, number in transaction.execute(query)}
    return {state: counts.get(state, 0) for state in _LIVE}


def queued_requirements(transaction: Transaction) -> list[tuple[Requirement, int]]:
    """Return what the queued jobs require of a device, each with the number of jobs."""
    device = jobs.c.compression["device"].astext
    dtype = jobs.c.compression["dtype"].astext
    kinds = (device, dtype, DEVICES, jobs.c.gpu_bytes, jobs.c.host_bytes)
    query = select(*kinds, func.count()).where(jobs.c.state == State.QUEUED).group_by(*kinds)
    return [
        (
            Requirement.named(
                name or DeviceChoice.AUTO,
                dtype_name or ANY_DTYPE,
                devices,
                memory=RequiredMemory(gpu_bytes=gpu_bytes, host_bytes=host_bytes),
            ),
            number,
        )
        for name, dtype_name, devices, gpu_bytes, host_bytes, number in transaction.execute(query)
    ]
