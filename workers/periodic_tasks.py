"""Periodic tasks: maintenance, webhook deliveries, registry hand-offs, worker announcements.

They run in threads of a worker or scheduler, not under Celery beat: beat sends its tasks through
the broker, and one task is to resend what an unavailable broker has lost. All of them use guarded
updates or skip locked rows, so any number of workers and schedulers may run them at once.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app.domain.errors import OUTAGE_ERRORS, BrokerUnavailableError, ServiceError
from app.domain.lifecycle import TERMINAL
from app.domain.webhook import DueDelivery
from app.domain.worker import Registration
from app.services import (
    artifact_check,
    audit,
    claims,
    deliveries,
    deployment,
    fleet,
    generation_claims,
    jobs,
    orphans,
    outbox,
    publication,
    registry_hand_offs,
    retention,
    upload_contents,
    uploads,
)
from app.services.resources import Resources
from app.settings import Settings
from app.telemetry import get_logger, metrics
from workers.generation_runner import remove_stale_generations
from workers.runner import remove_stale_statistics, remove_stale_work
from workers.telemetry import count_end

MaintenanceTask = Callable[[Resources], object]

_PARALLEL_DELIVERIES = 8
_log = get_logger(__name__)


def reap(resources: Resources) -> None:
    """Requeue or fail the jobs of silent workers, and remove the files of failed ones."""
    for job in claims.reap_expired(resources):
        _log.warning("job_reaped", job_id=job.id, state=job.state, attempt=job.attempt)
        metrics.JOBS_REAPED.labels(job.state).inc()
        if job.state in TERMINAL:
            count_end(job)
            publication.discard_other_attempts(resources, job)


def end_overdue(resources: Resources) -> None:
    """Fail jobs that exceed their time limits and that no worker has ended."""
    for job in claims.end_overdue(resources):
        _log.warning("job_overdue", job_id=job.id, state=job.state, attempt=job.attempt)
        count_end(job)


DEPLOYMENT_TASKS: tuple[MaintenanceTask, ...] = (
    deployment.check_store,
    reap,
    end_overdue,
    generation_claims.reap,
    fleet.remove_silent,
    jobs.forget_idempotency_keys,
    outbox.remind,
    outbox.dispatch,
    retention.settle,
    retention.expire,
    uploads.expire,
    orphans.remove_orphans,
    artifact_check.check_artifacts,
    audit.forget_old,
    deliveries.prune,
)
"""Maintenance of the whole deployment, done by any worker or scheduler."""

MACHINE_TASKS: tuple[MaintenanceTask, ...] = (
    remove_stale_work,
    remove_stale_statistics,
    remove_stale_generations,
    upload_contents.remove_stale,
    registry_hand_offs.remove_stale,
)
"""Maintenance of one machine's files, done by every worker."""


def maintenance_of_worker(
    settings: Settings, registration: Registration
) -> tuple[MaintenanceTask, ...]:
    """Return the maintenance tasks that a worker runs.

    It renews its registration before it looks for expired ones, which its own would be after the
    process was suspended.
    """
    if not settings.maintenance_in_worker:
        return MACHINE_TASKS
    renew = functools.partial(fleet.register, registration=registration)
    return (renew, *DEPLOYMENT_TASKS, *MACHINE_TASKS)


def send_due_deliveries(resources: Resources) -> int:
    """Send at most one delivery of each webhook in parallel; return the number of attempts."""
    due = deliveries.claim_due(resources, _PARALLEL_DELIVERIES)
    if not due:
        return 0
    with ThreadPoolExecutor(max_workers=len(due), thread_name_prefix="webhook") as pool:
        for future in [pool.submit(_deliver, resources, delivery) for delivery in due]:
            future.result()
    return len(due)


def _deliver(resources: Resources, due: DueDelivery) -> None:
    deliveries.record(resources, due, deliveries.send(resources, due))


def perform_due_hand_off(resources: Resources) -> int:
    """Perform at most one hand-off, which may be large; return the number of attempts."""
    due = registry_hand_offs.claim_due(resources)
    if due is None:
        return 0
    registry_hand_offs.perform(resources, due)
    return 1


def announce(resources: Resources, registration: Registration) -> int:
    """Register the worker as live; return 0, because no further call is due.

    The database has what the worker can run. The broker has a name only, by which workers of
    earlier releases are counted.
    """
    _update_registry(resources.workers.announce, registration.id)
    fleet.register(resources, registration)
    return 0


def leave(resources: Resources, owner: str) -> None:
    """Remove the worker from both registries; where that fails, its registration expires."""
    _update_registry(resources.workers.leave, owner)
    try:
        fleet.unregister(resources, owner)
    except ServiceError as error:
        _log.debug("worker_not_unregistered", code=error.code)


def _update_registry(update: Callable[[str], None], owner: str) -> None:
    try:
        update(owner)
    except BrokerUnavailableError:
        # The outage is logged already, and nobody can read the registry without the broker.
        _log.debug("worker_registry_unreachable")


class MaintenanceThread:
    """A thread that runs all its tasks at the start and then every `maintenance_seconds`."""

    def __init__(self, resources: Resources, tasks: tuple[MaintenanceTask, ...]) -> None:
        self._resources = resources
        self._tasks = tasks
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="maintenance")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def run_tasks(self) -> None:
        """Run every task once; a failing task does not prevent the others."""
        for task in self._tasks:
            try:
                task(self._resources)
            except OUTAGE_ERRORS as error:
                _log.debug("maintenance_postponed", task=_name(task), code=error.code)
            except ServiceError as error:
                _log.warning("maintenance_failed", task=_name(task), code=error.code)
            except Exception:
                # A bug in one task must not end the thread, or no lease would be reaped any more.
                _log.exception("maintenance_crashed", task=_name(task))

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.run_tasks()
            self._stopping.wait(self._resources.settings.maintenance_seconds)


def _name(task: MaintenanceTask) -> str:
    """Return the name of the task's function."""
    return getattr(task, "__name__", "") or getattr(task, "func", task).__name__


class PollingThread:
    """A thread that repeats one task, without a pause while there is work.

    Due work is read from the database, so no message is needed to start it.

    Args:
        resources: the process's resources.
        name: name of the thread and prefix of its log events.
        task: does some work and returns how much; after 0 it runs again in `maintenance_seconds`.
    """

    def __init__(self, resources: Resources, name: str, task: Callable[[Resources], int]) -> None:
        self.name = name
        self._resources = resources
        self._task = task
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Wait for the running call to end, at most `timeout` seconds."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._run_task():
                self._stopping.wait(self._resources.settings.maintenance_seconds)

    def _run_task(self) -> int:
        try:
            return self._task(self._resources)
        except OUTAGE_ERRORS as error:
            _log.debug(f"{self.name}_postponed", code=error.code)
        except ServiceError as error:
            _log.warning(f"{self.name}_failed", code=error.code)
        except Exception:
            # A bug must not end the thread; work that was not recorded is done again.
            _log.exception(f"{self.name}_crashed")
        return 0
