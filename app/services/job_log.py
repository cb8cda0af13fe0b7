"""Use cases of the log of a job's engine process: its worker writes lines, its project reads."""

from __future__ import annotations

from collections.abc import Sequence

from app.adapters.database import log_lines
from app.domain.errors import LeaseLostError
from app.domain.job import Lease
from app.domain.job_log import LogLevel, LogLineList, NewLogLine
from app.domain.principal import Principal
from app.services.jobs import existing_job
from app.services.resources import Resources


def record_lines(resources: Resources, lease: Lease, lines: Sequence[NewLogLine]) -> None:
    """Store lines of the attempt.

    Raises:
        LeaseLostError: if another worker claimed the job.
    """
    with resources.database.transaction() as transaction:
        if not log_lines.append(transaction, lease, lines):
            raise LeaseLostError


def list_lines(
    resources: Resources,
    principal: Principal,
    job_id: str,
    *,
    after: int,
    limit: int,
    level: LogLevel,
) -> LogLineList:
    """Return the stored lines after a sequence number, of at least this level.

    Raises:
        JobNotFoundError: if the principal's project has no such job.
    """
    with resources.database.transaction() as transaction:
        existing_job(transaction, principal, job_id)
        lines = log_lines.following(transaction, job_id, after=after, limit=limit + 1, level=level)
    return LogLineList.of(lines, limit)
