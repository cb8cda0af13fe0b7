"""The worker process: Celery listens for hints, a sweeper looks after the rest."""

from __future__ import annotations

import functools
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery import signals  # type: ignore[import-untyped]

from app.domain.errors import BrokerUnavailableError
from app.services import hand_offs
from app.services.resources import Resources, open_resources
from app.settings import Settings
from app.telemetry import configure_logging, get_logger
from app.telemetry.traces import configure_tracing, stop_tracing
from workers.child_process import end_all_children
from workers.deliveries import send_due
from workers.hand_offs import hand_off_due
from workers.metrics_server import metrics_server
from workers.rounds import RoundLoop
from workers.schedule import LOCAL_STEPS, SHARED_STEPS, Step, Sweeper
from workers.tasks import register_tasks

_log = get_logger(__name__)


def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT; a running job then goes back to the queue.

    Its child has `drain_seconds` to stop; a second signal does not wait for that.
    Threads, not processes, take the hints: the work itself is done in a spawned child per job,
    and a forked pool would hang once torch has computed in its parent.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    configure_logging(
        settings.log_level,
        settings.log_style,
        secrets=settings.secrets,
        fixed={"process": "worker", "worker": owner},
    )
    configure_tracing(settings.traces_url, "intraslice-worker")
    hand_offs.require_usable(settings)
    resources = open_resources(settings, signs=True)
    stopping = threading.Event()
    register_tasks(resources, owner, stopping)

    def on_shutdown(**_details: object) -> None:
        if stopping.is_set():
            end_all_children()
        stopping.set()

    signals.worker_shutting_down.connect(on_shutdown, weak=False)
    # Whoever listens here sets up the logs himself; Celery then leaves them alone.
    signals.setup_logging.connect(_logs_are_set_up, weak=False)
    _log.info("worker_started", concurrency=settings.worker_concurrency)
    try:
        worker = resources.celery.Worker(
            hostname=f"intraslice@{owner}",
            pool="threads",
            concurrency=settings.worker_concurrency,
            loglevel=settings.log_level,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        with metrics_server(settings), _beside_the_jobs(resources, owner, stopping):
            worker.start()
    finally:
        signals.worker_shutting_down.disconnect(on_shutdown)
        resources.close()
        stop_tracing()
    _log.info("worker_stopped")


@contextmanager
def _beside_the_jobs(resources: Resources, owner: str, stopping: threading.Event) -> Iterator[None]:
    """Threads that look after everything else, until the worker stops."""
    sweeper = Sweeper(resources, steps_of(resources.settings))
    sender = RoundLoop(resources, "deliveries", send_due)
    handing_off = RoundLoop(resources, "hand_offs", hand_off_due)
    roll = RoundLoop(resources, "roll", functools.partial(_announce, owner=owner))
    for each in (sweeper, sender, handing_off, roll):
        each.start()
    try:
        yield
    finally:
        stopping.set()
        sweeper.stop()
        sender.stop()
        roll.stop()
        _tell(resources.workers.leave, owner)
        # What it is broken off in, another worker begins again.
        handing_off.stop(resources.settings.drain_seconds)


def _announce(resources: Resources, owner: str) -> int:
    """Nothing is ever left to do: the loop waits until the next time."""
    _tell(resources.workers.announce, owner)
    return 0


def _tell(say: Callable[[str], None], owner: str) -> None:
    try:
        say(owner)
    except BrokerUnavailableError:
        # Celery complains of it already, and without the broker nobody could read it.
        _log.debug("worker_roll_unreachable")


def steps_of(settings: Settings) -> tuple[Step, ...]:
    """A worker's share of the periodic work."""
    return SHARED_STEPS + LOCAL_STEPS if settings.maintenance_in_worker else LOCAL_STEPS


def _logs_are_set_up(**_details: object) -> None:
    """See `configure_logging`."""
