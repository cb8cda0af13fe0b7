"""What is measured and traced of a job: few lines here, so that the work reads as before."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import structlog

from app.domain.job import Job
from app.services.resources import Resources
from app.telemetry import metrics
from app.telemetry.traces import current_traceparent, span
from intraslice_core.progress import Stage
from workers.messages import ChildTelemetry


@contextmanager
def observed(job: Job) -> Iterator[None]:
    """Bind the job to every log line of this thread, and continue its request's trace."""
    metrics.JOBS_CLAIMED.inc()
    if job.attempt == 1 and job.started_at is not None:
        waited = job.started_at - job.created_at
        metrics.QUEUE_WAIT_SECONDS.observe(waited.total_seconds())
    bound = structlog.contextvars.bound_contextvars(job_id=job.id, attempt=job.attempt)
    facts: dict[str, str | int] = {"intraslice.job_id": job.id, "intraslice.attempt": job.attempt}
    with bound, span("job attempt", parent=job.traceparent, attributes=facts):
        yield


def count_end(job: Job) -> None:
    """Once, when the job has ended."""
    if job.started_at is not None and job.finished_at is not None:
        spent = job.finished_at - job.started_at
        metrics.JOB_SECONDS.labels(job.state).observe(spent.total_seconds())


def child_telemetry(resources: Resources, job: Job) -> ChildTelemetry:
    """What the child needs to speak as we do."""
    settings = resources.settings
    return ChildTelemetry(
        log_level=settings.log_level,
        context={
            "job_id": job.id,
            "attempt": str(job.attempt),
            "worker": job.lease_owner or "",
            "parent": str(os.getpid()),
        },
        traces_url=settings.traces_url,
        traceparent=current_traceparent(),
    )


class StageClock:
    """Tells how long each stage took, from the changes between them."""

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._since = 0.0
        self.seconds: dict[Stage, float] = {}
        """By stage, once it has ended."""

    def enter(self, stage: Stage | None) -> None:
        """A stage begins, the one before ends; None ends the last."""
        now = time.monotonic()
        if stage is self._stage:
            return
        if self._stage is not None:
            spent = now - self._since
            metrics.STAGE_SECONDS.labels(self._stage).observe(spent)
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + spent
        self._stage, self._since = stage, now


class StageSpans:
    """The same as spans, in the process that does the work."""

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._open = ExitStack()

    def enter(self, stage: Stage | None) -> None:
        if stage is self._stage:
            return
        self._open.close()
        self._open = ExitStack()
        if stage is not None:
            self._open.enter_context(span(f"stage {stage}"))
        self._stage = stage
