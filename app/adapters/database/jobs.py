"""Rows of `jobs`. Every change of state is one guarded UPDATE."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from app.adapters.database.engine import Transaction
from app.adapters.database.notifications import announcement
from app.adapters.database.tables import jobs
from app.adapters.database.tables.base import JSON
from app.domain.job import (
    JobError,
    JobFilter,
    JobRecord,
    JobRequest,
    JobResult,
    JobUrls,
    Lease,
    Progress,
)
from app.domain.lifecycle import LEASED, TERMINAL, TRANSITIONS, Action, State
from app.telemetry.traces import current_traceparent
from intraslice_core.progress import Stage

# The report is long and rarely wanted; lease and hint times mean nothing outside the database.
_HIDDEN = {
    "report",
    "lease_expires_at",
    "event_sequence",
    "hints",
    "next_hint_at",
    "settled_at",
    "queued_at",
    "claimed_at",
    "artifacts_checked_at",
    "artifacts_missing_at",
}
_COLUMNS: tuple[ColumnElement[Any], ...] = (
    *(column for column in jobs.c if column.name not in _HIDDEN),
    jobs.c.artifacts_missing_at.is_not(None).label("artifacts_missing"),
)
_NAMES = tuple(str(column.key) for column in _COLUMNS)

# The most frequent queries are built once: building a statement takes longer than running it.
_FIND = select(*_COLUMNS).where(jobs.c.id == bindparam("job_id"))
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
_FIRST_HINT_SECONDS = 60
_LONGEST_HINT_SECONDS = 3600


def insert_job(  # a row's worth
    transaction: Transaction,
    job_id: str,
    project_id: str,
    request: JobRequest,
    *,
    attempts: int,
    store_prefix: str,
) -> JobRecord:
    row = transaction.execute(
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
            traceparent=current_traceparent(),
            next_hint_at=_from_now(_FIRST_HINT_SECONDS),
        )
        .returning(*_COLUMNS)
    ).one()
    return _job(row)


def find(transaction: Transaction, job_id: str) -> JobRecord | None:
    row = transaction.execute(_FIND, {"job_id": job_id}).one_or_none()
    return _job(row) if row is not None else None


def lock(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Return the job, locked until the transaction ends."""
    query = select(*_COLUMNS).where(jobs.c.id == job_id).with_for_update()
    row = transaction.execute(query).one_or_none()
    return _job(row) if row is not None else None


def with_ids(transaction: Transaction, job_ids: Sequence[str]) -> list[JobRecord]:
    """Return the jobs in the order of the ids, without those that have no row."""
    rows = _rows(transaction, select(*_COLUMNS).where(jobs.c.id.in_(job_ids)))
    by_id = {job.id: job for job in rows}
    return [by_id[job_id] for job_id in job_ids if job_id in by_id]


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
    return _rows(transaction, _page(frozenset(wanted)), values)


@cache
def _page(wanted: frozenset[str]) -> Select[Any]:
    """Return the query of a list with these criteria; there are a hundred at most."""
    conditions = [_CONDITIONS[name] for name in sorted(wanted)]
    return (
        select(*_COLUMNS)
        .where(jobs.c.project_id == bindparam("project_id"), *conditions)
        .order_by(jobs.c.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )


def of_sweep(transaction: Transaction, sweep_id: str) -> list[JobRecord]:
    return _rows(transaction, select(*_COLUMNS).where(jobs.c.sweep_id == sweep_id))


def claim_next(transaction: Transaction, owner: str, lease_seconds: float) -> JobRecord | None:
    """Take the lease of a queued job and raise its fencing token; None if no job is queued.

    The job of highest priority comes first, among equals the oldest.
    """
    following = (
        select(jobs.c.id)
        .where(jobs.c.state == State.QUEUED)
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    guard = and_(
        jobs.c.id == following.scalar_subquery(),
        jobs.c.state.in_(TRANSITIONS[Action.CLAIM].sources),
    )
    return _claim(transaction, guard, owner, lease_seconds)


def _claim(
    transaction: Transaction, guard: ColumnElement[bool], owner: str, lease_seconds: float
) -> JobRecord | None:
    return _change(
        transaction,
        guard,
        state=TRANSITIONS[Action.CLAIM].target,
        lease_owner=owner,
        lease_expires_at=_from_now(lease_seconds),
        fencing_token=jobs.c.fencing_token + 1,
        attempt=jobs.c.attempt + 1,
        started_at=func.coalesce(jobs.c.started_at, func.now()),
        claimed_at=func.now(),
        stage=None,
        progress=None,
        error=None,
        next_hint_at=None,
    )


def renew(transaction: Transaction, lease: Lease, lease_seconds: float) -> State | None:
    """Renew the lease and return the job's state; None if the lease is lost."""
    state = transaction.scalar(
        update(jobs)
        .where(_owned(lease))
        .values(lease_expires_at=_from_now(lease_seconds))
        .returning(jobs.c.state)
    )
    return State(state) if state is not None else None


def holds(transaction: Transaction, job_id: str, token: int) -> bool:
    """Return whether the claim with this token is the current one."""
    count = transaction.scalar(
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.id == job_id, jobs.c.fencing_token == token, jobs.c.state.in_(LEASED))
    )
    return bool(count)


def lock_owned(transaction: Transaction, lease: Lease) -> bool:
    """Return whether the lease is valid, which it then stays until the transaction ends."""
    query = select(jobs.c.id).where(_owned(lease)).with_for_update()
    return transaction.scalar(query) is not None


def is_over(transaction: Transaction, job_id: str) -> bool:
    """Return whether the job has ended or was deleted."""
    alive = select(func.count()).where(jobs.c.id == job_id, jobs.c.state.not_in(TERMINAL))
    return not transaction.scalar(alive)


def record_progress(
    transaction: Transaction, lease: Lease, stage: Stage, progress: Progress
) -> bool:
    """Write stage and progress; return False if the lease is lost."""
    changed = transaction.execute(
        update(jobs)
        .where(_owned(lease))
        .values(stage=stage, progress=progress.model_dump(mode="json"))
        .returning(announcement(jobs.c.id))
    )
    return changed.one_or_none() is not None


def request_cancel(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Ask the worker to cancel; None if no worker runs the job."""
    guard = _guard(Action.REQUEST_CANCEL, job_id)
    return _change(transaction, guard, state=TRANSITIONS[Action.REQUEST_CANCEL].target)


def cancel(transaction: Transaction, job_id: str, lease: Lease | None) -> JobRecord | None:
    """Cancel a job that no worker runs, or a cancelling one for its worker."""
    guard = and_(_guard(Action.CANCEL, job_id), _owned(lease) if lease else _unclaimed())
    return _finish(transaction, guard, Action.CANCEL)


def request_pause(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Ask the worker to pause; None if no worker runs the job."""
    guard = _guard(Action.REQUEST_PAUSE, job_id)
    return _change(transaction, guard, state=TRANSITIONS[Action.REQUEST_PAUSE].target)


def pause(
    transaction: Transaction, job_id: str, lease: Lease | None, *, counts: bool = False
) -> JobRecord | None:
    """Pause a queued job, or a pausing one for its worker; `counts` an attempt that died."""
    guard = and_(_guard(Action.PAUSE, job_id), _owned(lease) if lease else _unclaimed())
    return _change(
        transaction,
        guard,
        state=TRANSITIONS[Action.PAUSE].target,
        attempt=jobs.c.attempt if counts or lease is None else jobs.c.attempt - 1,
        stage=None,
        next_hint_at=None,
        **_NO_LEASE,
    )


def resume(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Queue a paused job again, with at least one attempt left."""
    attempt = func.least(jobs.c.attempt, jobs.c.max_attempts - 1)
    guard = _guard(Action.RESUME, job_id)
    return _enqueue(transaction, guard, Action.RESUME, attempt=attempt)


def retry(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Queue a failed or cancelled job again, with all its attempts.

    An expired job is not queued: the removal of its files would remove the new ones too.
    """
    return _enqueue(
        transaction,
        and_(_guard(Action.RETRY, job_id), jobs.c.expired_at.is_(None)),
        Action.RETRY,
        attempt=0,
        error=None,
        finished_at=None,
        settled_at=None,
        expires_at=None,
    )


def remove(transaction: Transaction, job_id: str) -> bool:
    """Delete a job that has ended, with its dependent rows; return False if it has not."""
    guard = and_(jobs.c.id == job_id, jobs.c.state.in_(TERMINAL))
    return transaction.execute(delete(jobs).where(guard)).rowcount == 1


def expire_pending(transaction: Transaction, error: JobError, limit: int) -> list[str]:
    """Fail queued jobs that no worker has started within their `max_pending_s`."""
    waited = func.now() - jobs.c.queued_at
    due = (
        select(jobs.c.id)
        .where(
            jobs.c.state == State.QUEUED,
            jobs.c.max_pending_s.is_not(None),
            waited > _seconds(jobs.c.max_pending_s),
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ended = []
    for job_id in list(transaction.scalars(due)):
        values = {"error": error.model_dump(mode="json")}
        if _finish(transaction, _guard(Action.EXPIRE, job_id), Action.EXPIRE, **values):
            ended.append(job_id)
    return ended


def overdue(transaction: Transaction, grace_seconds: float, limit: int) -> list[JobRecord]:
    """Return jobs past their `max_runtime_s` that their worker did not end, locked."""
    spent = func.now() - jobs.c.claimed_at
    allowed = _seconds(jobs.c.max_runtime_s) + timedelta(seconds=grace_seconds)
    query = (
        select(*_COLUMNS)
        .where(jobs.c.state.in_(LEASED), jobs.c.max_runtime_s.is_not(None), spent > allowed)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return _rows(transaction, query)


def succeed(
    transaction: Transaction, lease: Lease, result: JobResult, report: dict[str, Any]
) -> JobRecord | None:
    guard = and_(_guard(Action.SUCCEED, lease.job_id), _owned(lease))
    return _finish(
        transaction,
        guard,
        Action.SUCCEED,
        result=result.model_dump(mode="json"),
        report=report,
        progress=Progress(fraction=1.0, message="done").model_dump(mode="json"),
    )


def fail(transaction: Transaction, lease: Lease, error: JobError) -> JobRecord | None:
    guard = and_(_guard(Action.FAIL, lease.job_id), _owned(lease))
    return _finish(transaction, guard, Action.FAIL, error=error.model_dump(mode="json"))


def requeue(
    transaction: Transaction, lease: Lease, *, counts: bool, error: JobError | None
) -> JobRecord | None:
    """Queue the job again; an attempt that did not fail through the job does not count."""
    return _enqueue(
        transaction,
        and_(_guard(Action.REQUEUE, lease.job_id), _owned(lease)),
        Action.REQUEUE,
        attempt=jobs.c.attempt if counts else jobs.c.attempt - 1,
        error=error and error.model_dump(mode="json"),
        **_NO_LEASE,
    )


def expired(transaction: Transaction, limit: int) -> list[JobRecord]:
    """Return jobs with an expired lease, locked; other reapers skip them."""
    query = (
        select(*_COLUMNS)
        .where(jobs.c.lease_expires_at < func.now())
        .order_by(jobs.c.lease_expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return _rows(transaction, query)


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
        _FIRST_HINT_SECONDS * func.power(2, func.least(jobs.c.hints + 1, 10)), _LONGEST_HINT_SECONDS
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


def count_busy_workers(transaction: Transaction) -> int:
    """Return the number of workers that hold a lease."""
    query = select(func.count(func.distinct(jobs.c.lease_owner))).where(
        jobs.c.lease_expires_at > func.now()
    )
    return int(transaction.execute(query).scalar_one())


_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None}


def _guard(action: Action, job_id: str) -> ColumnElement[bool]:
    """Return the lifecycle table as SQL, a condition that holds where the action is legal."""
    return and_(jobs.c.id == job_id, jobs.c.state.in_(TRANSITIONS[action].sources))


def _owned(lease: Lease) -> ColumnElement[bool]:
    """Return the condition that this claim is the current one."""
    return and_(
        jobs.c.id == lease.job_id,
        jobs.c.state.in_(LEASED),
        jobs.c.fencing_token == lease.token,
        jobs.c.lease_owner == lease.owner,
    )


def _unclaimed() -> ColumnElement[bool]:
    return jobs.c.state.not_in(LEASED)


def _enqueue(
    transaction: Transaction, guard: ColumnElement[bool], action: Action, **values: Any
) -> JobRecord | None:
    return _change(
        transaction,
        guard,
        state=TRANSITIONS[action].target,
        stage=None,
        progress=None,
        hints=0,
        queued_at=func.now(),
        next_hint_at=_from_now(_FIRST_HINT_SECONDS),
        **values,
    )


def _finish(
    transaction: Transaction, guard: ColumnElement[bool], action: Action, **values: Any
) -> JobRecord | None:
    return _change(
        transaction,
        guard,
        state=TRANSITIONS[action].target,
        finished_at=func.now(),
        next_hint_at=None,
        **_NO_LEASE,
        **values,
    )


def _change(
    transaction: Transaction, guard: ColumnElement[bool], **values: Any
) -> JobRecord | None:
    row = transaction.execute(
        update(jobs).where(guard).values(**values).returning(*_COLUMNS)
    ).one_or_none()
    return _job(row) if row is not None else None


def _rows(
    transaction: Transaction, query: Select[Any], values: dict[str, Any] | None = None
) -> list[JobRecord]:
    return [_job(row) for row in transaction.execute(query, values).all()]


def _seconds(number: ColumnElement[int]) -> ColumnElement[Any]:
    return func.make_interval(0, 0, 0, 0, 0, 0, number)


def _from_now(seconds: float) -> ColumnElement[Any]:
    # The database's clock only: workers' clocks may differ.
    return func.now() + timedelta(seconds=seconds)


def _job(row: Row[Any]) -> JobRecord:
    """Return the job of a row. One validation makes the enumerations and nested models too."""
    values = dict(zip(_NAMES, row, strict=True))
    return JobRecord.model_validate(values | {"urls": JobUrls.of(values["id"])})
