"""Use cases of jobs: create, list, stop, resume, delete, and read their log, report and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.adapters.database import (
    artifacts,
    deployment,
    events,
    idempotency,
    job_changes,
    jobs,
    outbox,
)
from app.adapters.database.engine import Transaction
from app.adapters.database.notifications import announce
from app.domain.artifact import ArtifactRecord, job_prefix
from app.domain.errors import (
    ArtifactNotFoundError,
    ArtifactsExpiredError,
    FieldProblem,
    IdempotencyKeyReusedError,
    IllegalTransitionError,
    InvalidRequestError,
    JobNotFoundError,
    PreconditionFailedError,
    ReportNotFoundError,
)
from app.domain.events import EventList, EventType
from app.domain.identifiers import is_job_id, new_job_id
from app.domain.job import MOST_LABELS, JobFilter, JobList, JobRecord, JobRequest, Lease
from app.domain.lifecycle import State
from app.domain.principal import Principal
from app.domain.sweep import SweepRequest
from app.domain.worker import RequiredMemory
from app.services.deployment import require_own_store
from app.services.removal import delete_prefix
from app.services.requirements import required_memory
from app.services.resources import Resources
from app.services.upload_facts import admit_request


@dataclass(frozen=True, kw_only=True)
class Creation:
    """A job; `replayed` says that an earlier request with the same key created it."""

    job: JobRecord
    replayed: bool


@dataclass(frozen=True, kw_only=True)
class _Stop:
    """A way to stop a job: at once where no worker runs it, else on request to its worker."""

    at_once: Callable[[Transaction, str, Lease | None], JobRecord | None]
    request: Callable[[Transaction, str], JobRecord | None]
    states: frozenset[State]
    """States of a job that is stopped, or asked to stop, already."""
    stopped: EventType
    requested: EventType
    error: str


_CANCEL = _Stop(
    at_once=job_changes.cancel,
    request=job_changes.request_cancel,
    states=frozenset({State.CANCELLING, State.CANCELLED}),
    stopped=EventType.CANCELLED,
    requested=EventType.CANCEL_REQUESTED,
    error="The job has {state}; it cannot be cancelled",
)
_PAUSE = _Stop(
    at_once=job_changes.pause,
    request=job_changes.request_pause,
    states=frozenset({State.PAUSING, State.PAUSED}),
    stopped=EventType.PAUSED,
    requested=EventType.PAUSE_REQUESTED,
    error="The job is {state}; it cannot be paused",
)
_QUEUED_OR_RUNNING = frozenset({State.QUEUED, State.RUNNING})


def create_job(
    resources: Resources,
    principal: Principal,
    request: JobRequest,
    idempotency_key: str | None = None,
) -> Creation:
    """Write job, first event and wake-up message in one transaction.

    Raises:
        InvalidRequestError: if the job names a source it may not use.
        IdempotencyKeyReusedError: if the key belongs to another request.
    """
    admitted = admit_request(resources, principal.project_id, request)
    job_id, memory = new_job_id(), required_memory(admitted)
    with resources.database.transaction() as transaction:
        if idempotency_key is not None:
            claim = idempotency.Claim(
                project_id=principal.project_id,
                key=idempotency_key,
                request_hash=fingerprint(request),
                job_id=job_id,
            )
            earlier = idempotency.reserve(transaction, claim)
            if earlier is not None:
                return _replay(transaction, principal, claim, earlier)
        job = enqueue_job(resources, transaction, principal, job_id, request, memory=memory)
    return Creation(job=job, replayed=False)


def enqueue_job(
    resources: Resources,
    transaction: Transaction,
    principal: Principal,
    job_id: str,
    request: JobRequest,
    *,
    memory: RequiredMemory,
) -> JobRecord:
    """Write the job's row, its first event and its wake-up message."""
    settings = resources.settings
    if request.max_runtime_s is None:
        request = replace(request, max_runtime_s=settings.max_runtime_s)
    job = jobs.insert_job(
        transaction,
        job_id,
        principal.project_id,
        request,
        attempts=settings.max_attempts,
        store_prefix=deployment.current(transaction).store_prefix,
        memory=memory,
    )
    _announce_queued(transaction, job_id, EventType.QUEUED)
    return job


def forget_idempotency_keys(resources: Resources) -> int:
    """Remove expired idempotency keys; return how many."""
    with resources.database.transaction() as transaction:
        return idempotency.forget_old(transaction)


def get_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    return resources.database.read(lambda reading: existing_job(reading, principal, job_id))


def existing_job(transaction: Transaction, principal: Principal, job_id: str) -> JobRecord:
    """Return the job, if it belongs to the principal's project.

    Raises:
        JobNotFoundError: otherwise.
    """
    return _visible(jobs.find(transaction, job_id) if is_job_id(job_id) else None, principal)


def list_jobs(
    resources: Resources, principal: Principal, criteria: JobFilter, *, limit: int
) -> JobList:
    page = resources.database.read(
        lambda reading: jobs.newest(reading, principal.project_id, criteria, limit=limit + 1)
    )
    return JobList.of(page, limit)


def edit_labels(
    resources: Resources,
    principal: Principal,
    job_id: str,
    changes: Mapping[str, str | None],
    *,
    is_current: Callable[[JobRecord], bool],
) -> JobRecord:
    """Set labels of a job, and remove those that are None; repeating it is harmless.

    Args:
        resources: the database.
        principal: the caller.
        job_id: the job, in any state.
        changes: values by label; labels without a value here stay.
        is_current: condition on the job before the change.

    Raises:
        PreconditionFailedError: if the condition does not hold.
        InvalidRequestError: if the job would have too many labels.
    """
    with resources.database.transaction() as transaction:
        job = locked_job(transaction, principal, job_id)
        if not is_current(job):
            raise PreconditionFailedError
        merged = {**job.labels, **changes}
        labels = {key: value for key, value in merged.items() if value is not None}
        if len(labels) > MOST_LABELS:
            message = f"the job would have {len(labels)} labels, at most {MOST_LABELS} are allowed"
            problem = FieldProblem(pointer="/labels", code="too_long", message=message)
            raise InvalidRequestError("The job would have too many labels", fields=(problem,))
        edited = jobs.set_labels(transaction, job_id, labels)
        announce(transaction, job_id)
    return edited


def cancel_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    """End a waiting job, or ask the worker of a running one to stop. Repeating it is harmless.

    Raises:
        IllegalTransitionError: if the job has already ended otherwise.
    """
    return _stop(resources, principal, job_id, _CANCEL)


def pause_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    """Pause a waiting job, or ask the worker of a running one to. Repeating it is harmless.

    Raises:
        IllegalTransitionError: if the job has ended or is being cancelled.
    """
    return _stop(resources, principal, job_id, _PAUSE)


def resume_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    """Queue a paused job again; one that is queued or running already is left alone.

    Raises:
        IllegalTransitionError: if the job is in another state.
    """
    with resources.database.transaction() as transaction:
        job = locked_job(transaction, principal, job_id)
        if job.state in _QUEUED_OR_RUNNING:
            return job
        resumed = job_changes.resume(transaction, job_id)
        if resumed is None:
            raise IllegalTransitionError(f"The job is {job.state}; only a paused one is resumed")
        _announce_queued(transaction, job_id, EventType.RESUMED)
    return resumed


def retry_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    """Queue a failed or cancelled job again, with all its attempts; a live one is left alone.

    Raises:
        IllegalTransitionError: if the job has succeeded, has expired or is being cancelled.
    """
    with resources.database.transaction() as transaction:
        job = locked_job(transaction, principal, job_id)
        if job.state in _QUEUED_OR_RUNNING:
            return job
        if job.expired_at is not None:
            raise IllegalTransitionError("The job has expired; submit it again")
        retried = job_changes.retry(transaction, job_id)
        if retried is None:
            detail = f"The job is {job.state}; only a failed or cancelled one is retried"
            raise IllegalTransitionError(detail)
        _announce_queued(transaction, job_id, EventType.RETRIED)
    return retried


def delete_job(resources: Resources, principal: Principal, job_id: str) -> None:
    """Delete a job that has ended, and its files.

    The row goes first, so that no client gets half of the files. Files that an interruption
    leaves in the store have no row then, and maintenance removes them as orphans.

    Raises:
        IllegalTransitionError: if the job has not ended.
        StoreNotOwnedError: if the store is not provably this deployment's.
    """
    require_own_store(resources)
    with resources.database.transaction() as transaction:
        job = locked_job(transaction, principal, job_id)
        if not jobs.remove(transaction, job_id):
            raise IllegalTransitionError(f"The job is {job.state}; cancel it first")
        announce(transaction, job_id)
    delete_prefix(resources, job_prefix(job))


def list_events(
    resources: Resources, principal: Principal, job_id: str, *, after: int, limit: int
) -> EventList:
    with resources.database.transaction() as transaction:
        existing_job(transaction, principal, job_id)
        following = events.following(transaction, job_id, after=after, limit=limit + 1)
    return EventList.of(following, limit)


def get_report(resources: Resources, principal: Principal, job_id: str) -> dict[str, Any]:
    """Return the engine's report of a succeeded job.

    Raises:
        ReportNotFoundError: if the job has not succeeded.
    """
    with resources.database.transaction() as transaction:
        job = existing_job(transaction, principal, job_id)
        report = jobs.find_report(transaction, job_id)
    if report is None:
        raise ReportNotFoundError(f"The job is {job.state}; it has a report once it has succeeded")
    return report


def list_artifacts(resources: Resources, principal: Principal, job_id: str) -> list[ArtifactRecord]:
    """Return the published files; none before success, and none after they expired."""
    with resources.database.transaction() as transaction:
        job = existing_job(transaction, principal, job_id)
        return artifacts.of_job(transaction, job_id) if job.expired_at is None else []


def get_artifact(resources: Resources, job_id: str, name: str) -> ArtifactRecord:
    """Return a published file, for the bearer of a signed link: the link is the permission.

    Raises:
        ArtifactNotFoundError: if the job has no such file.
        ArtifactsExpiredError: if its files have expired.
    """
    with resources.database.transaction() as transaction:
        _published(transaction, job_id)
        artifact = artifacts.find(transaction, job_id, name)
    if artifact is None:
        raise ArtifactNotFoundError
    return artifact


def get_artifacts(resources: Resources, job_id: str) -> tuple[JobRecord, list[ArtifactRecord]]:
    """Return a job and all its files, for the bearer of a signed link.

    Raises:
        ArtifactNotFoundError: if the job has published nothing.
        ArtifactsExpiredError: if its files have expired.
    """
    with resources.database.transaction() as transaction:
        job = _published(transaction, job_id)
        files = artifacts.of_job(transaction, job_id)
    if not files:
        raise ArtifactNotFoundError
    return job, files


def _published(transaction: Transaction, job_id: str) -> JobRecord:
    """Return a job of any project whose files have not expired."""
    job = jobs.find(transaction, job_id) if is_job_id(job_id) else None
    if job is None:
        raise ArtifactNotFoundError
    if job.expired_at is not None:
        raise ArtifactsExpiredError
    return job


def locked_job(transaction: Transaction, principal: Principal, job_id: str) -> JobRecord:
    """Return the job, locked, so that its state cannot change before the transaction ends."""
    return _visible(jobs.lock(transaction, job_id) if is_job_id(job_id) else None, principal)


def _visible(job: JobRecord | None, principal: Principal) -> JobRecord:
    """Return the job; those of other projects do not exist for this one."""
    if job is None or job.project_id != principal.project_id:
        raise JobNotFoundError
    return job


def _stop(resources: Resources, principal: Principal, job_id: str, stop: _Stop) -> JobRecord:
    with resources.database.transaction() as transaction:
        job = locked_job(transaction, principal, job_id)
        if job.state in stop.states:
            return job
        stopped = stop.at_once(transaction, job_id, None)
        changed = stopped or stop.request(transaction, job_id)
        if changed is None:
            raise IllegalTransitionError(stop.error.format(state=job.state))
        events.append(transaction, job_id, stop.stopped if stopped else stop.requested)
    return changed


def _announce_queued(transaction: Transaction, job_id: str, kind: EventType) -> None:
    """Append the event of a job that was queued, and the message that wakes a worker for it."""
    events.append(transaction, job_id, kind)
    outbox.add(transaction, job_id)


def _replay(
    transaction: Transaction,
    principal: Principal,
    claim: idempotency.Claim,
    earlier: idempotency.Claim,
) -> Creation:
    if earlier.request_hash != claim.request_hash:
        raise IdempotencyKeyReusedError
    return Creation(job=existing_job(transaction, principal, earlier.job_id), replayed=True)


def fingerprint(request: JobRequest | SweepRequest) -> str:
    """Return a hash that is equal for equal requests, however their JSON was written."""
    values = {
        name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value
        for name, value in asdict(request).items()
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
