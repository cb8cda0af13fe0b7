"""Changes of a job's state by its callers, its worker and maintenance; the claim is in `leases`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, func, select

from app.adapters.database.engine import Transaction
from app.adapters.database.job_rows import (
    NO_LEASE,
    change,
    enqueue,
    finish,
    guarded,
    owned,
    seconds,
    unclaimed,
)
from app.adapters.database.tables import jobs
from app.domain.job import JobError, JobRecord, JobResult, Lease, Progress
from app.domain.lifecycle import TRANSITIONS, Action, State


def request_cancel(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Ask the worker to cancel; None if no worker runs the job."""
    guard = guarded(Action.REQUEST_CANCEL, job_id)
    return change(transaction, guard, state=TRANSITIONS[Action.REQUEST_CANCEL].target)


def cancel(transaction: Transaction, job_id: str, lease: Lease | None) -> JobRecord | None:
    """Cancel a job that no worker runs, or a cancelling one for its worker."""
    guard = and_(guarded(Action.CANCEL, job_id), owned(lease) if lease else unclaimed())
    return finish(transaction, guard, Action.CANCEL)


def request_pause(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Ask the worker to pause; None if no worker runs the job."""
    guard = guarded(Action.REQUEST_PAUSE, job_id)
    return change(transaction, guard, state=TRANSITIONS[Action.REQUEST_PAUSE].target)


def pause(
    transaction: Transaction, job_id: str, lease: Lease | None, *, counts: bool = False
) -> JobRecord | None:
    """Pause a queued job, or a pausing one for its worker; `counts` an attempt that died."""
    guard = and_(guarded(Action.PAUSE, job_id), owned(lease) if lease else unclaimed())
    return change(
        transaction,
        guard,
        state=TRANSITIONS[Action.PAUSE].target,
        attempt=jobs.c.attempt if counts or lease is None else jobs.c.attempt - 1,
        stage=None,
        next_hint_at=None,
        **NO_LEASE,
    )


def resume(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Queue a paused job again, with at least one attempt left."""
    attempt = func.least(jobs.c.attempt, jobs.c.max_attempts - 1)
    guard = guarded(Action.RESUME, job_id)
    return enqueue(transaction, guard, Action.RESUME, attempt=attempt)


def retry(transaction: Transaction, job_id: str) -> JobRecord | None:
    """Queue a failed or cancelled job again, with all its attempts.

    An expired job is not queued: the removal of its files would remove the new ones too.
    """
    return enqueue(
        transaction,
        and_(guarded(Action.RETRY, job_id), jobs.c.expired_at.is_(None)),
        Action.RETRY,
        attempt=0,
        error=None,
        finished_at=None,
        settled_at=None,
        expires_at=None,
    )


def succeed(
    transaction: Transaction, lease: Lease, result: JobResult, report: dict[str, Any]
) -> JobRecord | None:
    guard = and_(guarded(Action.SUCCEED, lease.job_id), owned(lease))
    return finish(
        transaction,
        guard,
        Action.SUCCEED,
        result=result.model_dump(mode="json"),
        report=report,
        progress=Progress(fraction=1.0, message="done").model_dump(mode="json"),
    )


def fail(transaction: Transaction, lease: Lease, error: JobError) -> JobRecord | None:
    guard = and_(guarded(Action.FAIL, lease.job_id), owned(lease))
    return finish(transaction, guard, Action.FAIL, error=error.model_dump(mode="json"))


def requeue(
    transaction: Transaction, lease: Lease, *, counts: bool, error: JobError | None
) -> JobRecord | None:
    """Queue the job again; an attempt that did not fail through the job does not count."""
    return enqueue(
        transaction,
        and_(guarded(Action.REQUEUE, lease.job_id), owned(lease)),
        Action.REQUEUE,
        attempt=jobs.c.attempt if counts else jobs.c.attempt - 1,
        error=error and error.model_dump(mode="json"),
        **NO_LEASE,
    )


def expire_pending(transaction: Transaction, error: JobError, limit: int) -> list[str]:
    """Fail queued jobs that no worker has started within their `max_pending_s`."""
    waited = func.now() - jobs.c.queued_at
    due = (
        select(jobs.c.id)
        .where(
            jobs.c.state == State.QUEUED,
            jobs.c.max_pending_s.is_not(None),
            waited > seconds(jobs.c.max_pending_s),
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ended = []
    for job_id in list(transaction.scalars(due)):
        values = {"error": error.model_dump(mode="json")}
        if finish(transaction, guarded(Action.EXPIRE, job_id), Action.EXPIRE, **values):
            ended.append(job_id)
    return ended
