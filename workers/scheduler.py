"""The scheduler process: maintenance without jobs, for deployments whose workers run none."""

from __future__ import annotations

import threading

from app.environment import log_advice
from app.services.resources import Resources, open_resources
from app.services.startup import wait_for_servers
from app.settings import Settings
from app.telemetry import configure_logging, get_logger
from app.telemetry.traces import configure_tracing, stop_tracing
from workers.heartbeat import heartbeat
from workers.periodic_tasks import DEPLOYMENT_TASKS, MaintenanceThread
from workers.stopping import stopping_signals
from workers.telemetry import metrics_server

_log = get_logger(__name__)


def run_scheduler(settings: Settings) -> None:
    """Run maintenance until SIGTERM or SIGINT; an interrupted task is repeated later.

    Raises:
        ConfigurationError: if a setting cannot be used.
        UnavailableError: if a server rejects the settings, or the database has no schema.
    """
    configure_logging(
        settings.log_level,
        settings.log_style,
        secrets=settings.secrets,
        fixed={"process": "scheduler"},
    )
    log_advice(settings)
    configure_tracing(settings.traces_url, "intraslice-scheduler")
    resources = open_resources(settings)
    try:
        with stopping_signals() as stop:
            with heartbeat(settings, "scheduler", (), stop) as waiting:
                waiting.start()
                wait_for_servers(resources, stop)
            if not stop.is_set():
                _run_maintenance(resources, stop)
    finally:
        resources.close()
        stop_tracing()
    _log.info("scheduler_stopped")


def _run_maintenance(resources: Resources, stop: threading.Event) -> None:
    settings = resources.settings
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
