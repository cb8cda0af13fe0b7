"""What happens regularly, whether messages come or not.

A thread of the worker's process, or a scheduler of its own, and not Celery beat: beat hands its
tasks to the broker, and sending what an absent broker has missed is the very work to be done. All
steps are guarded updates or skip locked rows, so any number of workers and schedulers may do them
at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from app.domain.errors import ServiceError
from app.domain.lifecycle import TERMINAL
from app.services import (
    audit,
    claims,
    deliveries,
    hand_offs,
    jobs,
    outbox,
    publication,
    retention,
    upload_contents,
    uploads,
)
from app.services.resources import Resources
from app.telemetry import get_logger, metrics
from workers.observation import count_end
from workers.runner import remove_stale_shared, remove_stale_work

_log = get_logger(__name__)


def reap(resources: Resources) -> None:
    """Re-queue jobs of silent workers, or end them; what those left in the store goes."""
    for job in claims.reap_expired(resources):
        _log.warning("job_reaped", job_id=job.id, state=job.state, attempt=job.attempt)
        metrics.JOBS_REAPED.labels(job.state).inc()
        if job.state in TERMINAL:
            count_end(job)
            publication.discard_other_attempts(resources, job)


def end_overdue(resources: Resources) -> None:
    """End jobs past their limits whose workers have not."""
    for job in claims.end_overdue(resources):
        _log.warning("job_overdue", job_id=job.id, state=job.state, attempt=job.attempt)
        count_end(job)


Step = Callable[[Resources], object]

SHARED_STEPS: tuple[Step, ...] = (
    reap,
    end_overdue,
    jobs.forget_idempotency_keys,
    outbox.remind,
    outbox.dispatch,
    retention.settle,
    retention.expire,
    retention.remove_orphans,
    uploads.expire,
    uploads.remove_orphans,
    audit.forget_old,
    deliveries.prune,
)
"""Of the whole deployment: any worker or scheduler may do them."""

LOCAL_STEPS: tuple[Step, ...] = (
    remove_stale_work,
    remove_stale_shared,
    upload_contents.remove_stale,
    hand_offs.remove_stale,
)
"""Of this machine: every worker does them."""


class Sweeper:
    """Runs every step at once and then every `maintenance_seconds`."""

    def __init__(
        self, resources: Resources, steps: tuple[Step, ...] = SHARED_STEPS + LOCAL_STEPS
    ) -> None:
        self._resources = resources
        self._steps = steps
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sweeper")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def sweep(self) -> None:
        """One round; a step that fails does not keep the others from their turn."""
        for step in self._steps:
            try:
                step(self._resources)
            except ServiceError as error:
                _log.warning("sweep_failed", step=step.__name__, code=error.code)
            except Exception:
                # The thread must outlive a bug in one step, or no lease would ever be reaped.
                _log.exception("sweep_crashed", step=step.__name__)

    def _run(self) -> None:
        while not self._done.is_set():
            self.sweep()
            self._done.wait(self._resources.settings.maintenance_seconds)
