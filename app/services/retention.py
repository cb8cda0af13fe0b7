"""Removal from the artifact store: expired files, left-overs of attempts, and orphans.

Every step can be interrupted anywhere; the next run finishes it. No step waits for another run:
two at once do the same work twice, and removing twice is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator

from app.adapters.database import jobs, retention
from app.adapters.database.engine import take_turn
from app.domain.artifact import JOBS_PREFIX, job_of_prefix, job_prefix, lifetime
from app.domain.errors import ArtifactsExpiredError
from app.domain.job import JobRecord
from app.domain.lifecycle import TERMINAL
from app.domain.principal import Principal
from app.services import publication
from app.services.jobs import existing_job, locked_job
from app.services.resources import Resources
from app.telemetry import get_logger, metrics

_BATCH = 50
_ORPHANS_AT_ONCE = 500
_ORPHANS = "remove_orphans"
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
    with resources.database.transaction() as transaction:
        due = retention.expire_due(transaction, _BATCH)
    for job_id in due:
        # Clients get 410 from here on, so that none gets half of the files.
        resources.store.delete(resources.store.keys(job_prefix(job_id)))
        with resources.database.transaction() as transaction:
            retention.finish_expiry(transaction, job_id)
        metrics.JOBS_EXPIRED.inc()
        _log.info("job_expired", job_id=job_id)
    return len(due)


def remove_orphans(resources: Resources) -> int:
    """Remove the objects of jobs that have no row any more; a periodic task.

    A job's row is written before its first object, so an object without one is an orphan.
    """
    with resources.database.transaction() as transaction:
        if not take_turn(transaction, _ORPHANS, resources.settings.orphan_check_seconds):
            return 0
    removed = 0
    for prefixes in _batches(resources.store.directories(JOBS_PREFIX)):
        owners = {prefix: job_of_prefix(prefix) for prefix in prefixes}
        with resources.database.transaction() as transaction:
            alive = retention.existing(transaction, set(owners.values()))
        for prefix, owner in owners.items():
            if owner not in alive:
                keys = resources.store.keys(prefix)
                resources.store.delete(keys)
                removed += len(keys)
                _log.warning("orphans_removed", job_id=owner, objects=len(keys))
    metrics.ORPHANS_REMOVED.inc(removed)
    return removed


def _batches(prefixes: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(prefixes), _ORPHANS_AT_ONCE):
        yield prefixes[start : start + _ORPHANS_AT_ONCE]
