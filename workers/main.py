"""The worker process: Celery receives wake-up hints, threads run the periodic tasks."""

from __future__ import annotations

import functools
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from celery import signals  # type: ignore[import-untyped]

from app.adapters.queue import WAKE_TASK, queue_name
from app.domain.worker import Registration, Slot
from app.environment import log_advice
from app.services import registry_hand_offs
from app.services.resources import Resources, open_resources
from app.services.startup import wait_for_servers
from app.settings import Settings
from app.telemetry import configure_logging, get_logger
from app.telemetry.traces import configure_tracing, stop_tracing
from intraslice_core import __version__
from intraslice_core.host_limit import host_memory_bytes
from workers import periodic_tasks
from workers.child_process import kill_all_children
from workers.devices import find_slots
from workers.heartbeat import heartbeat
from workers.job_slots import JobSlots
from workers.periodic_tasks import MaintenanceTask, MaintenanceThread, PollingThread
from workers.stopping import hand_over_to_celery, stopping_signals
from workers.telemetry import celery_outages, metrics_server

_log = get_logger(__name__)


def run_worker(settings: Settings) -> None:
    """Run jobs until SIGTERM or SIGINT; a running job then returns to the queue.

    The engine process has `drain_seconds` to stop; a second signal kills it at once.

    Raises:
        ConfigurationError: if a setting cannot be used.
        UnavailableError: if a server rejects the settings, or the database has no schema.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    configure_logging(
        settings.log_level,
        settings.log_style,
        secrets=settings.secrets,
        fixed={"process": "worker", "worker": owner},
    )
    log_advice(settings)
    configure_tracing(settings.traces_url, "intraslice-worker")
    registry_hand_offs.require_usable(settings)
    slots = find_slots(settings)
    resources = open_resources(settings, signs=True, jobs_at_once=len(slots))
    try:
        with stopping_signals() as stopped:
            with heartbeat(settings, "worker", (), stopped) as waiting:
                waiting.start()
                deployment_id = wait_for_servers(resources, stopped)
            if deployment_id is not None:
                hand_over_to_celery(resources.celery, stopped)
                with celery_outages(settings.broker_url):
                    _run_celery(resources, owner, deployment_id, slots)
    finally:
        resources.close()
        stop_tracing()
    _log.info("worker_stopped")


def _run_celery(
    resources: Resources, owner: str, deployment_id: str, slots: Sequence[Slot]
) -> None:
    """Receive the deployment's hints until a signal stops Celery.

    Hints are handled in threads, not processes: every job runs in a spawned child process, and a
    forked pool would hang once its parent has computed with torch.
    """
    settings = resources.settings
    stopping = threading.Event()
    job_slots = JobSlots(resources, owner, stopping, slots)
    registration = Registration.of(owner, __version__, host_memory_bytes(), slots)
    _register_wake_task(resources, job_slots)
    with _shutdown_signals(stopping):
        devices = [device.name for device in registration.devices]
        _log.info("worker_started", jobs_at_once=len(slots), devices=devices)
        worker = resources.celery.Worker(
            hostname=f"intraslice@{owner}",
            pool="threads",
            concurrency=len(slots),
            queues=[queue_name(deployment_id)],
            loglevel=settings.log_level,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        tasks = _periodic_tasks(resources, registration, job_slots, stopping)
        with metrics_server(settings), tasks:
            worker.start()


def _register_wake_task(resources: Resources, job_slots: JobSlots) -> None:
    @resources.celery.task(name=WAKE_TASK)  # type: ignore[untyped-decorator]  # Celery has no types
    def wake(_job_id: str) -> None:
        """Run the most urgent jobs while any are queued, whichever job the hint named."""
        job_slots.run_queued()


@contextmanager
def _shutdown_signals(stopping: threading.Event) -> Iterator[None]:
    """Set `stopping` at Celery's first shutdown signal; kill the engine processes at the second."""

    def on_shutdown(**_details: object) -> None:
        if stopping.is_set():
            kill_all_children()
        stopping.set()

    signals.worker_shutting_down.connect(on_shutdown, weak=False)
    # With a receiver of this signal, Celery leaves the logging set-up alone.
    signals.setup_logging.connect(_keep_logging, weak=False)
    try:
        yield
    finally:
        signals.worker_shutting_down.disconnect(on_shutdown)


@contextmanager
def _periodic_tasks(
    resources: Resources,
    registration: Registration,
    job_slots: JobSlots,
    stopping: threading.Event,
) -> Iterator[None]:
    """Run the threads of the periodic tasks until the worker stops."""
    settings = resources.settings
    follow = functools.partial(_stop_if_replaced, deployment_id=resources.deployment.id())
    maintenance_tasks = periodic_tasks.maintenance_of_worker(settings, registration)
    tasks: tuple[MaintenanceTask, ...] = (follow, *maintenance_tasks)
    deliveries = PollingThread(resources, "deliveries", periodic_tasks.send_due_deliveries)
    hand_offs = PollingThread(resources, "hand_offs", periodic_tasks.perform_due_hand_off)
    announce = functools.partial(periodic_tasks.announce, registration=registration)
    registry = PollingThread(resources, "worker_registry", announce)
    # One thread for each slot, because a thread that has found a job runs it to its end.
    looking = [
        PollingThread(resources, f"jobs_without_hints_{number}", job_slots.run_without_hints)
        for number in range(job_slots.total)
    ]
    others = (deliveries, hand_offs, registry, *looking)
    names = ("maintenance", *(thread.name for thread in others))
    with heartbeat(settings, "worker", names, stopping) as beating:
        maintenance = MaintenanceThread(resources, beating.watched(tasks))
        maintenance.start()
        for thread in others:
            thread.start()
        beating.start()
        try:
            yield
        finally:
            stopping.set()
            for thread in looking:
                thread.stop()
            maintenance.stop()
            deliveries.stop()
            registry.stop()
            periodic_tasks.leave(resources, registration.id)
            # Another worker repeats an interrupted hand-off.
            hand_offs.stop(settings.drain_seconds)


def _stop_if_replaced(resources: Resources, deployment_id: str) -> None:
    """Stop the worker if the database became another deployment's, by a restore for instance.

    Its queue is named after the former deployment. The supervisor starts it again, with the new.
    """
    present = resources.deployment.read().id
    if present != deployment_id:
        _log.error("deployment_replaced", before=deployment_id, now=present)
        os.kill(os.getpid(), signal.SIGTERM)


def _keep_logging(**_details: object) -> None:
    """Receive Celery's signal; `configure_logging` has set up the logs."""
