"""The scheduler process: maintenance without jobs, for deployments whose workers run none."""

from __future__ import annotations

import signal
import threading

from app.services.resources import open_resources
from app.settings import Settings
from app.telemetry import configure_logging, get_logger
from app.telemetry.traces import configure_tracing, stop_tracing
from workers.heartbeat import heartbeat
from workers.periodic_tasks import DEPLOYMENT_TASKS, MaintenanceThread
from workers.telemetry import metrics_server

_log = get_logger(__name__)


def run_scheduler(settings: Settings) -> None:
    """Run maintenance until SIGTERM or SIGINT; an interrupted task is repeated later."""
    configure_logging(
        settings.log_level,
        settings.log_style,
        secrets=settings.secrets,
        fixed={"process": "scheduler"},
    )
    configure_tracing(settings.traces_url, "intraslice-scheduler")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    resources = open_resources(settings)
    try:
        with (
            heartbeat(settings, "scheduler", ("maintenance",), stop) as beating,
            metrics_server(settings),
        ):
            maintenance = MaintenanceThread(resources, beating.watched(DEPLOYMENT_TASKS))
            maintenance.start()
            beating.start()
            _log.info("scheduler_started")
            try:
                stop.wait()
            finally:
                maintenance.stop()
    finally:
        resources.close()
        stop_tracing()
    _log.info("scheduler_stopped")
