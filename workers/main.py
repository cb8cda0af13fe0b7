"""The worker process: Celery listens for hints, a sweeper looks after the rest."""

from __future__ import annotations

import os
import secrets
import socket
import threading

from celery import signals  # type: ignore[import-untyped]

from app.services.resources import open_resources
from app.settings import Settings
from app.telemetry import configure_logging, get_logger
from workers.schedule import Sweeper
from workers.tasks import register_tasks

_log = get_logger(__name__)


def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT; a running job then goes back to the queue.

    Threads, not processes, take the hints: the work itself is done in a spawned child per job,
    and a forked pool would hang once torch has computed in its parent.
    """
    configure_logging(settings.log_level)
    resources = open_resources(settings)
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    stopping = threading.Event()
    register_tasks(resources, owner, stopping)

    def on_shutdown(**_details: object) -> None:
        _log.info("worker_stopping", worker=owner)
        stopping.set()

    signals.worker_shutting_down.connect(on_shutdown, weak=False)
    sweeper = Sweeper(resources)
    sweeper.start()
    _log.info("worker_started", worker=owner, concurrency=settings.worker_concurrency)
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
        worker.start()
    finally:
        stopping.set()
        sweeper.stop()
        signals.worker_shutting_down.disconnect(on_shutdown)
        resources.close()
    _log.info("worker_stopped", worker=owner)
