"""Use cases of workers: claim jobs, renew leases, end jobs. Every write requires the lease."""

from __future__ import annotations

from app.adapters.database import events, job_changes, jobs, leases, outbox
from app.adapters.database.engine import Transaction
from app.domain.errors import LeaseLostError
from app.domain.events import EventType
from app.domain.job import JobError, JobRecord, Lease, Progress
from app.domain.lifecycle import State
from app.domain.worker import FreeSlots
from app.services.resources import Resources
from intraslice_core.progress import Stage

_REAPED_AT_ONCE = 50
WORKER_LOST = "worker_lost"
TIMEOUT = "timeout"
_EXPIRED = JobError(
    code="expired_in_queue",
    message="no worker started the job within its max_pending_s",
    field="max_pending_s",
    hint="retry it, or start more workers",
)


def claim_next_job(
    resources: Resources, owner: str, free: FreeSlots | None = None
) -> JobRecord | None:
    """Claim the job of highest priority that the free devices can run; None if there is none."""
    with resources.database.transaction() as transaction:
        job = leases.claim_next(transaction, owner, resources.settings.lease_seconds, free)
        if job is not None:
            events.append(transaction, job.id, EventType.STARTED, {"worker": owner})
    return job


def renew_lease(resources: Resources, lease: Lease) -> State:
    """Renew the lease and return whether the job is to stop.

    Raises:
        LeaseLostError: if another worker claimed the job.
    """
    with resources.database.transaction() as transaction:
        state = leases.renew(transaction, lease, resources.settings.lease_seconds)
    if state is None:
        raise LeaseLostError
    return state


def holds_lease(resources: Resources, job_id: str, token: int) -> bool:
    with resources.database.transaction() as transaction:
        return leases.holds(transaction, job_id, token)


def is_over(resources: Resources, job_id: str) -> bool:
    """Return whether the job has ended or was deleted."""
    with resources.database.transaction() as transaction:
        return jobs.is_over(transaction, job_id)


def record_progress(
    resources: Resources, lease: Lease, stage: Stage, progress: Progress, *, log: bool
) -> None:
    """Record the job's stage and progress; `log` appends an event too.

    Raises:
        LeaseLostError: if another worker claimed the job.
    """
    with resources.database.transaction() as transaction:
        if not leases.record_progress(transaction, lease, stage, progress):
            raise LeaseLostError
        if log:
            data = {"stage": stage, **progress.model_dump(mode="json", exclude_none=True)}
            events.append(transaction, lease.job_id, EventType.PROGRESS, data)


def fail_job(resources: Resources, lease: Lease, error: JobError) -> JobRecord:
    """Fail the job; one that was being cancelled is cancelled instead."""
    with resources.database.transaction() as transaction:
        return _fail(transaction, lease, error)


def requeue_job(
    resources: Resources, lease: Lease, error: JobError | None, *, gpu_bytes: int | None = None
) -> JobRecord:
    """Queue the job again; without an error the attempt does not count.

    `gpu_bytes` is what a GPU must have at least from now on; None leaves the requirement.
    """
    with resources.database.transaction() as transaction:
        if gpu_bytes is not None:
            leases.raise_requirement(transaction, lease, gpu_bytes)
        return _requeue(transaction, lease, error)


def finish_cancel(resources: Resources, lease: Lease) -> JobRecord:
    with resources.database.transaction() as transaction:
        return _cancel(transaction, lease)


def finish_pause(resources: Resources, lease: Lease) -> JobRecord:
    """Pause the job without counting the attempt, or cancel it if that was requested since."""
    with resources.database.transaction() as transaction:
        return _stop(transaction, lease)


def reap_expired(resources: Resources) -> list[JobRecord]:
    """Take jobs from workers with expired leases; return the jobs in their new states."""
    with resources.database.transaction() as transaction:
        lost = leases.expired(transaction, _REAPED_AT_ONCE)
        return [_reap(transaction, job) for job in lost]


def end_overdue(resources: Resources) -> list[JobRecord]:
    """Fail jobs that were not started in time, and jobs that exceed their run time.

    A worker ends its own jobs; this is for one that cannot, for longer than a lease lasts.
    """
    with resources.database.transaction() as transaction:
        for job_id in job_changes.expire_pending(transaction, _EXPIRED, _REAPED_AT_ONCE):
            events.append(transaction, job_id, EventType.FAILED, _described(_EXPIRED))
        stuck = leases.overdue(transaction, resources.settings.lease_seconds, _REAPED_AT_ONCE)
        return [_fail(transaction, job.lease, timeout_error(job)) for job in stuck]


def timeout_error(job: JobRecord) -> JobError:
    return JobError(
        code=TIMEOUT,
        message=f"the job ran longer than its max_runtime_s of {job.max_runtime_s}",
        stage=job.stage,
        field="max_runtime_s",
        hint="submit it with more time or fewer calibration tokens",
    )


def _reap(transaction: Transaction, job: JobRecord) -> JobRecord:
    error = JobError(
        code=WORKER_LOST,
        message=f"the worker of attempt {job.attempt} went silent",
        stage=job.stage,
        retryable=True,
    )
    if job.state is State.RUNNING and job.attempt < job.max_attempts:
        return _requeue(transaction, job.lease, error)
    if job.state is State.PAUSING:
        return _stop(transaction, job.lease, counts=True)
    return _fail(transaction, job.lease, error)


def _fail(transaction: Transaction, lease: Lease, error: JobError) -> JobRecord:
    job = job_changes.fail(transaction, lease, error)
    if job is None:
        return _cancel(transaction, lease)
    events.append(transaction, lease.job_id, EventType.FAILED, _described(error))
    return job


def _requeue(transaction: Transaction, lease: Lease, error: JobError | None) -> JobRecord:
    job = job_changes.requeue(transaction, lease, counts=error is not None, error=error)
    if job is None:
        return _stop(transaction, lease, counts=error is not None)
    data = _described(error) if error else {"reason": "the worker was stopped"}
    events.append(transaction, lease.job_id, EventType.REQUEUED, data)
    outbox.add(transaction, lease.job_id)
    return job


def _stop(transaction: Transaction, lease: Lease, *, counts: bool = False) -> JobRecord:
    """Pause or cancel the job, whichever was requested."""
    job = job_changes.pause(transaction, lease.job_id, lease, counts=counts)
    if job is None:
        return _cancel(transaction, lease)
    events.append(transaction, lease.job_id, EventType.PAUSED)
    return job


def _cancel(transaction: Transaction, lease: Lease) -> JobRecord:
    job = job_changes.cancel(transaction, lease.job_id, lease)
    if job is None:
        raise LeaseLostError
    events.append(transaction, lease.job_id, EventType.CANCELLED)
    return job


def _described(error: JobError) -> dict[str, object]:
    return {"error": error.model_dump(mode="json", exclude_none=True)}
