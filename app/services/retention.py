"""Removal of expired files and of left-overs of attempts from the artifact store.

Every step can be interrupted anywhere; the next run finishes it. No step waits for another run:
two at once do the same work twice, and removing twice is harmless.
"""

from __future__ import annotations

from app.adapters.database import jobs, retention
from app.domain.artifact import job_prefix, lifetime
from app.domain.errors import ArtifactsExpiredError
from app.domain.job import JobRecord
from app.domain.lifecycle import TERMINAL
from app.domain.principal import Principal
from app.services import publication
from app.services.deployment import may_delete
from app.services.jobs import existing_job, locked_job
from app.services.removal import delete_prefix
from app.services.resources import Resources
from app.telemetry import get_logger, metrics

_BATCH = 50
_log = get_logger(__name__)


def pin_job(resources: Resources, principal: Principal, job_id: str, *, pinned: bool) -> JobRecord:
    """Keep a job's artifacts for ever, or let them expire again. Repeating it is harmless.

    Raises:
        JobNotFoundError: if the project has no such job.
        ArtifactsExpiredError: if they have been removed.
    """
    span = lifetime(resources.settings.retention_days)
    with resources.database.transaction() as transaction:
        locked_job(transaction, principal, job_id)
        if not retention.set_pinned(transaction, job_id, pinned=pinned, lifetime=span):
            raise ArtifactsExpiredError
        return existing_job(transaction, principal, job_id)


def settle(resources: Resources) -> int:
    """Remove left-overs of ended jobs' attempts, and set when the published files expire."""
    if not may_delete(resources):
        return 0
    with resources.database.transaction() as transaction:
        waiting = retention.unsettled(transaction, _BATCH)
    for job_id in waiting:
        with resources.database.transaction() as transaction:
            job = jobs.find(transaction, job_id)
        if job is None or job.state not in TERMINAL:
            continue
        publication.discard_other_attempts(resources, job)
        with resources.database.transaction() as transaction:
            retention.settle(transaction, job, lifetime(resources.settings.retention_days))
    return len(waiting)


def expire(resources: Resources) -> int:
    """Remove the files of expired jobs; the jobs themselves stay."""
    if not may_delete(resources):
        return 0
    with resources.database.transaction() as transaction:
        due = retention.expire_due(transaction, _BATCH)
    for job in due:
        # Clients get 410 from here on, so that none gets half of the files.
        delete_prefix(resources, job_prefix(job))
        with resources.database.transaction() as transaction:
            retention.finish_expiry(transaction, job.id)
        metrics.JOBS_EXPIRED.inc()
        _log.info("job_expired", job_id=job.id)
    return len(due)
