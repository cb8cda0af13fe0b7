"""Stored log lines of jobs: guarded by the lease, bounded, and removed with the job's files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from app.adapters.database import log_lines
from app.domain import job_log as domain
from app.domain.errors import JobNotFoundError, LeaseLostError
from app.domain.job import Job, JobError, JobRecord
from app.domain.job_log import LogLevel, LogLine, NewLogLine
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR, Principal
from app.services import claims, job_log, jobs, retention
from app.services.resources import Resources
from tests.app.builders import claim_job, in_state, running

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def new_line(event: str = "e", level: LogLevel = LogLevel.INFO, **fields: Any) -> NewLogLine:
    return NewLogLine(time=NOW, level=level, event=event, fields=fields)


def write(resources: Resources, job: JobRecord, *lines: NewLogLine) -> None:
    job_log.record_lines(resources, job.lease, lines or [new_line()])


def stored(resources: Resources, job: Job, **options: Any) -> Sequence[LogLine]:
    criteria = {"after": 0, "limit": 1000, "level": LogLevel.DEBUG} | options
    return job_log.list_lines(resources, OPERATOR, job.id, **criteria).data


def claimed(resources: Resources, job_id: str) -> JobRecord:
    job = claim_job(resources, job_id)
    assert isinstance(job, JobRecord)
    return job


def test_lines_of_all_attempts_are_kept_in_one_order_with_the_events(resources: Resources) -> None:
    job = claimed(resources, in_state(resources, State.QUEUED).id)
    write(resources, job, new_line("first", layer=1), new_line("second"))
    error = JobError(code="out_of_memory", message="killed")
    claims.requeue_job(resources, job.lease, error)
    write(resources, claimed(resources, job.id), new_line("third"))
    lines = stored(resources, job)
    assert [(line.event, line.attempt) for line in lines] == [
        ("first", 1),
        ("second", 1),
        ("third", 2),
    ]
    assert (lines[0].time, lines[0].fields) == (NOW, {"layer": 1})
    with resources.database.transaction() as transaction:
        entries = log_lines.entries(transaction, job.id, after=0, limit=100)
    assert [entry.sequence for entry in entries] == list(range(1, 8))
    names = [entry.event if isinstance(entry, LogLine) else entry.type for entry in entries]
    assert names == ["queued", "started", "first", "second", "requeued", "started", "third"]


def test_a_worker_that_lost_the_lease_writes_nothing(resources: Resources) -> None:
    job = claimed(resources, in_state(resources, State.QUEUED).id)
    claims.requeue_job(resources, job.lease, None)
    with pytest.raises(LeaseLostError):
        write(resources, job)
    claimed(resources, job.id)
    with pytest.raises(LeaseLostError):
        write(resources, job)
    assert stored(resources, job) == ()


def test_only_the_newest_lines_are_kept(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "MOST_LINES", 5)
    job = claimed(resources, in_state(resources, State.QUEUED).id)
    for start in (0, 4):
        write(resources, job, *(new_line(str(number)) for number in range(start, start + 4)))
    assert [line.event for line in stored(resources, job)] == ["3", "4", "5", "6", "7"]


def test_the_size_of_a_jobs_lines_is_bounded(resources: Resources) -> None:
    job = claimed(resources, in_state(resources, State.QUEUED).id)
    for _ in range(3):
        write(resources, job, *(new_line("x" * 4096) for _ in range(100)))
    lines = stored(resources, job)
    assert 0.99 * domain.MOST_BYTES < sum(len(line.event) for line in lines) <= domain.MOST_BYTES


def test_lines_are_filtered_by_level_and_paged(resources: Resources) -> None:
    job = claimed(resources, in_state(resources, State.QUEUED).id)
    write(resources, job, *(new_line(level, level) for level in LogLevel))
    severe = stored(resources, job, level=LogLevel.WARNING)
    assert [line.event for line in severe] == ["warning", "error", "critical"]
    page = job_log.list_lines(
        resources, OPERATOR, job.id, after=severe[0].sequence, limit=1, level=LogLevel.WARNING
    )
    assert ([line.event for line in page.data], page.has_more) == (["error"], True)


def test_lines_are_removed_with_the_job_and_when_its_files_expire(resources: Resources) -> None:
    expired = claimed(resources, in_state(resources, State.QUEUED).id)
    deleted = claimed(resources, in_state(resources, State.QUEUED).id)
    for job in (expired, deleted):
        write(resources, job)
        claims.fail_job(resources, job.lease, JobError(code="numerical", message="NaN"))
    assert stored(resources, expired) != ()
    jobs.delete_job(resources, OPERATOR, deleted.id)
    retention.settle(resources)
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET expires_at = now() - interval '1 s'"))
    retention.expire(resources)
    assert stored(resources, expired) == ()
    with resources.database.transaction() as transaction:
        assert transaction.scalar(text("SELECT count(*) FROM log_lines")) == 0


def test_lines_of_other_projects_are_not_found(resources: Resources) -> None:
    job = running(resources)
    stranger = Principal(project_id="other", scopes=OPERATOR.scopes)
    with pytest.raises(JobNotFoundError):
        job_log.list_lines(resources, stranger, job.id, after=0, limit=1, level=LogLevel.DEBUG)
