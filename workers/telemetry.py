"""Metrics, spans and log context of jobs, and the metrics endpoint of workers and schedulers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import structlog
from celery.worker.consumer import consumer  # type: ignore[import-untyped]
from prometheus_client import start_http_server

from app.adapters.valkey import described
from app.domain.job import JobRecord
from app.services.resources import Resources
from app.settings import Settings
from app.telemetry import metrics
from app.telemetry.outages import BROKER, OUTAGES
from app.telemetry.traces import current_traceparent, span
from intraslice_core.errors import ConfigurationError
from intraslice_core.progress import Stage
from workers.messages import ChildTelemetry


@contextmanager
def metrics_server(settings: Settings) -> Iterator[None]:
    """Serve GET /metrics on `worker_metrics_port` while the context is open, unless it is 0.

    Raises:
        ConfigurationError: if the port cannot be bound.
    """
    if settings.worker_metrics_port == 0:
        yield
        return
    port, host = settings.worker_metrics_port, settings.worker_metrics_host
    try:
        server, thread = start_http_server(port, addr=host)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            field="INTRASLICE_WORKER_METRICS_PORT",
            hint="choose another port, or 0 for no metrics",
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def celery_outages(broker_url: str) -> Iterator[None]:
    """Report Celery's lost and failed connections as outages of the broker.

    Celery logs every one of its attempts to connect, and has no setting for that.
    """

    def keep(record: logging.LogRecord) -> bool:
        if consumer.CANCEL_TASKS_BY_DEFAULT in record.getMessage():
            return False  # advice about late acknowledgement, which we do not use
        error = _connection_error(record)
        if error is not None:
            OUTAGES.note_failure(BROKER, f"{described(broker_url)}: {error}")
        return error is None

    loggers = [logging.getLogger(name) for name in (consumer.__name__, "py.warnings")]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


def _connection_error(record: logging.LogRecord) -> str | None:
    """Return the reason of a connection that Celery reports as failed or lost."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    if record.msg == consumer.CONNECTION_ERROR:
        return str(arguments[1]).partition("\n")[0].rstrip(".")
    if consumer.CONNECTION_RETRY in arguments:
        return "connection lost"
    return None


@contextmanager
def observe_attempt(job: JobRecord) -> Iterator[None]:
    """Add the job to every log line of this thread, and continue the trace of its request."""
    metrics.JOBS_CLAIMED.inc()
    # An attempt that was paused does not count, but its job was claimed before.
    if job.fencing_token == 1 and job.started_at is not None:
        wait = job.started_at - job.created_at
        metrics.QUEUE_WAIT_SECONDS.observe(wait.total_seconds())
    context = structlog.contextvars.bound_contextvars(job_id=job.id, attempt=job.attempt)
    attributes: dict[str, str | int] = {
        "intraslice.job_id": job.id,
        "intraslice.attempt": job.attempt,
    }
    with context, span("job attempt", parent=job.traceparent, attributes=attributes):
        yield


def count_end(job: JobRecord) -> None:
    """Record the work of a job that has ended; to be called once."""
    if job.started_at is not None and job.finished_at is not None:
        metrics.JOB_SECONDS.labels(job.state).observe(job.worked_seconds)


def child_telemetry(resources: Resources, job: JobRecord) -> ChildTelemetry:
    """Return the log and trace settings of the job's child process."""
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
    """Durations of a job's stages, measured from one stage change to the next."""

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._since = 0.0
        self.seconds: dict[Stage, float] = {}
        """Duration of every stage that has ended."""

    def enter(self, stage: Stage | None) -> None:
        """End the current stage and start the given one; None starts none."""
        now = time.monotonic()
        if stage is self._stage:
            return
        if self._stage is not None:
            duration = now - self._since
            metrics.STAGE_SECONDS.labels(self._stage).observe(duration)
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + duration
        self._stage, self._since = stage, now


class StageSpans:
    """One span per stage, in the process that runs the engine."""

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
