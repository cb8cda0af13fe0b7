"""What a client does with jobs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.adapters.database import artifacts, events, idempotency, jobs, outbox
from app.adapters.database.engine import Transaction
from app.adapters.database.notifications import announce
from app.domain.artifact import ArtifactRecord, job_prefix
from app.domain.errors import (
    ArtifactNotFoundError,
    ArtifactsExpiredError,
    IdempotencyKeyReusedError,
    IllegalTransitionError,
    JobNotFoundError,
    ReportNotFoundError,
)
from app.domain.events import EventList, EventType
from app.domain.identifiers import is_job_id, new_job_id
from app.domain.job import JobFilter, JobList, JobRecord, JobRequest
from app.domain.lifecycle import State
from app.domain.principal import Principal
from app.domain.sweep import SweepRequest
from app.services.admission import admit
from app.services.resources import Resources
from app.services.uploads import locator


@dataclass(frozen=True, kw_only=True)
class Creation:
    """The job, and whether an earlier request had made it."""

    job: JobRecord
    replayed: bool


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
    admit(resources.settings, request, locator(resources, principal.project_id))
    job_id = new_job_id()
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
        job = enqueue_job(resources, transaction, principal, job_id, request)
    return Creation(job=job, replayed=False)


def enqueue_job(
    resources: Resources,
    transaction: Transaction,
    principal: Principal,
    job_id: str,
    request: JobRequest,
) -> JobRecord:
    """The job's row, its first event and its wake-up message."""
    settings = resources.settings
    if request.max_runtime_s is None:
        request = replace(request, max_runtime_s=settings.max_runtime_s)
    job = jobs.insert_job(transaction, job_id, principal.project_id, request, settings.max_attempts)
    events.append(transaction, job_id, EventType.QUEUED)
    outbox.add(transaction, job_id)
    return job


def forget_idempotency_keys(resources: Resources) -> int:
    """Drop keys past their time; the number dropped."""
    with resources.database.transaction() as transaction:
        return idempotency.forget_old(transaction)


def get_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    return resources.database.read(lambda reading: existing_job(reading, principal, job_id))


def existing_job(transaction: Transaction, principal: Principal, job_id: str) -> JobRecord:
    """The job, if the principal may see it."""
    return _visible(jobs.find(transaction, job_id) if is_job_id(job_id) else None, principal)


def list_jobs(
    resources: Resources, principal: Principal, criteria: JobFilter, *, limit: int
) -> JobList:
    page = resources.database.read(
        lambda reading: jobs.newest(reading, principal.project_id, criteria, limit=limit + 1)
    )
    return JobList.of(page, limit)


def cancel_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    """End a job that waits, ask the worker of a running one to stop. Asking twice is fine.

    Raises:
        IllegalTransitionError: if the job has already ended otherwise.
    """
    with resources.database.transaction() as transaction:
        job = _locked(transaction, principal, job_id)
        if job.state in (State.CANCELLING, State.CANCELLED):
            return job
        cancelled = jobs.cancel(transaction, job_id, lease=None)
        asked = cancelled or jobs.request_cancel(transaction, job_id)
        if asked is None:
            raise IllegalTransitionError(f"The job has {job.state}; it cannot be cancelled")
        kind = EventType.CANCELLED if cancelled else EventType.CANCEL_REQUESTED
        events.append(transaction, job_id, kind)
    return asked


def pause_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    """Put a waiting job aside, ask the worker of a running one to. Asking twice is fine.

    Raises:
        IllegalTransitionError: if the job has ended or is about to.
    """
    with resources.database.transaction() as transaction:
        job = _locked(transaction, principal, job_id)
        if job.state in (State.PAUSING, State.PAUSED):
            return job
        paused = jobs.pause(transaction, job_id, lease=None)
        asked = paused or jobs.request_pause(transaction, job_id)
        if asked is None:
            raise IllegalTransitionError(f"The job is {job.state}; it cannot be paused")
        kind = EventType.PAUSED if paused else EventType.PAUSE_REQUESTED
        events.append(transaction, job_id, kind)
    return asked


def resume_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    """Queue a paused job again; one that waits or runs already is left alone.

    Raises:
        IllegalTransitionError: if the job is not paused: not yet, or not any more.
    """
    with resources.database.transaction() as transaction:
        job = _locked(transaction, principal, job_id)
        if job.state in (State.QUEUED, State.RUNNING):
            return job
        resumed = jobs.resume(transaction, job_id)
        if resumed is None:
            raise IllegalTransitionError(f"The job is {job.state}; only a paused one is resumed")
        events.append(transaction, job_id, EventType.RESUMED)
        outbox.add(transaction, job_id)
    return resumed


def retry_job(resources: Resources, principal: Principal, job_id: str) -> JobRecord:
    """Queue a failed or cancelled job again, with all its attempts; a live one is left alone.

    Raises:
        IllegalTransitionError: if the job has succeeded or is about to be cancelled.
    """
    with resources.database.transaction() as transaction:
        job = _locked(transaction, principal, job_id)
        if job.state in (State.QUEUED, State.RUNNING):
            return job
        if job.expired_at is not None:
            raise IllegalTransitionError("The job has expired; submit it again")
        retried = jobs.retry(transaction, job_id)
        if retried is None:
            detail = f"The job is {job.state}; only a failed or cancelled one is retried"
            raise IllegalTransitionError(detail)
        events.append(transaction, job_id, EventType.RETRIED)
        outbox.add(transaction, job_id)
    return retried


def delete_job(resources: Resources, principal: Principal, job_id: str) -> None:
    """Forget a job that has ended, and remove its files.

    The row goes first, so that nobody is given half of the files; what an interruption leaves in
    the store has no owner then, and the sweeper removes it.

    Raises:
        IllegalTransitionError: if the job has not ended.
    """
    with resources.database.transaction() as transaction:
        job = _locked(transaction, principal, job_id)
        if not jobs.remove(transaction, job_id):
            raise IllegalTransitionError(f"The job is {job.state}; cancel it first")
        announce(transaction, job_id)
    resources.store.delete(resources.store.keys(job_prefix(job_id)))


def list_events(
    resources: Resources, principal: Principal, job_id: str, *, after: int, limit: int
) -> EventList:
    with resources.database.transaction() as transaction:
        existing_job(transaction, principal, job_id)
        following = events.following(transaction, job_id, after=after, limit=limit + 1)
    return EventList.of(following, limit)


def get_report(resources: Resources, principal: Principal, job_id: str) -> dict[str, Any]:
    """The engine's report of a succeeded job.

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
    """Published files; none before success, and none after their time."""
    with resources.database.transaction() as transaction:
        job = existing_job(transaction, principal, job_id)
        return artifacts.of_job(transaction, job_id) if job.expired_at is None else []


def get_artifact(resources: Resources, job_id: str, name: str) -> ArtifactRecord:
    """A published file, for the bearer of a signed link: the link is the permission.

    Raises:
        ArtifactNotFoundError: if the job has no such file.
        ArtifactsExpiredError: if it had.
    """
    with resources.database.transaction() as transaction:
        _published(transaction, job_id)
        found = artifacts.find(transaction, job_id, name)
    if found is None:
        raise ArtifactNotFoundError
    return found


def get_artifacts(resources: Resources, job_id: str) -> tuple[JobRecord, list[ArtifactRecord]]:
    """A job and all its files, for the bearer of a signed link.

    Raises:
        ArtifactNotFoundError: if the job has published nothing.
        ArtifactsExpiredError: if it had.
    """
    with resources.database.transaction() as transaction:
        job = _published(transaction, job_id)
        found = artifacts.of_job(transaction, job_id)
    if not found:
        raise ArtifactNotFoundError
    return job, found


def _published(transaction: Transaction, job_id: str) -> JobRecord:
    """A job whose files have not expired, whoever asks."""
    job = jobs.find(transaction, job_id) if is_job_id(job_id) else None
    if job is None:
        raise ArtifactNotFoundError
    if job.expired_at is not None:
        raise ArtifactsExpiredError
    return job


def _locked(transaction: Transaction, principal: Principal, job_id: str) -> JobRecord:
    """The job, held: it may move between two states at any moment otherwise."""
    return _visible(jobs.lock(transaction, job_id) if is_job_id(job_id) else None, principal)


def _visible(job: JobRecord | None, principal: Principal) -> JobRecord:
    """What belongs to another project does not exist for this one."""
    if job is None or job.project_id != principal.project_id:
        raise JobNotFoundError
    return job


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
    """Equal for requests that ask for the same, however their JSON was written."""
    values = {
        name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value
        for name, value in asdict(request).items()
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
