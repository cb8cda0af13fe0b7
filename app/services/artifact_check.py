"""Periodic check that the artifacts of succeeded jobs are still in the store.

A job whose files are gone keeps its state and says `artifacts_missing`, until they are back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from app.adapters.database import artifacts, retention
from app.adapters.database.engine import take_turn
from app.domain.artifact import job_prefix
from app.domain.job import JobRecord
from app.services.resources import Resources
from app.telemetry import get_logger, metrics

_TASK = "check_artifacts"
_BATCH = 100
_TURN_SECONDS = 60.0
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckOutcome:
    """Numbers of checked jobs, and of those that miss files."""

    checked: int
    missing: int


def check_artifacts(resources: Resources) -> int:
    """Check the next jobs; return how many of them miss files; a periodic task."""
    with resources.database.transaction() as transaction:
        if not take_turn(transaction, _TASK, _TURN_SECONDS):
            return 0
    return check_due_artifacts(resources).missing


def check_due_artifacts(resources: Resources, *, every: bool = False) -> CheckOutcome:
    """Check the jobs that are due, or all with `every`.

    Raises:
        StoreUnavailableError: if a listing fails; the job in question stays as it was.
    """
    settings = resources.settings
    age = timedelta(hours=0 if every else settings.artifact_check_hours)
    again = timedelta(seconds=0 if every else settings.orphan_check_seconds)
    checked, missing, before = 0, 0, None
    while True:
        with resources.database.transaction() as transaction:
            batch = retention.unchecked(transaction, age, again, after=before, limit=_BATCH)
        checked += len(batch)
        missing += sum(_check(resources, job) for job in batch)
        if not every or len(batch) < _BATCH:
            return CheckOutcome(checked=checked, missing=missing)
        before = batch[-1].id


def _check(resources: Resources, job: JobRecord) -> bool:
    """Record whether the store holds every published file in its full length."""
    with resources.database.transaction() as transaction:
        files = artifacts.of_job(transaction, job.id)
    stored = resources.store.sizes(job_prefix(job))
    gone = [file.name for file in files if stored.get(file.key) != file.bytes]
    with resources.database.transaction() as transaction:
        retention.record_check(transaction, job, missing=bool(gone))
    if gone and not job.artifacts_missing:
        metrics.ARTIFACTS_MISSED.inc()
        _log.error("artifacts_missing", job_id=job.id, files=len(gone), first=gone[0])
    elif job.artifacts_missing and not gone:
        _log.info("artifacts_found_again", job_id=job.id)
    return bool(gone)
