"""The scheduler process, and the maintenance left to workers beside it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.worker import Registration
from app.services import fleet, jobs
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import in_state, running
from tests.app.environment import environment_of
from tests.app.fleets import miss_heartbeats
from workers.devices import cpu_slots
from workers.periodic_tasks import (
    DEPLOYMENT_TASKS,
    MACHINE_TASKS,
    MaintenanceThread,
    maintenance_of_worker,
)

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


@contextmanager
def scheduler(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli.main", "scheduler"],
            env={**os.environ, **environment_of(settings)},
            stdout=stream,
            stderr=stream,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def metrics_at(port: int, deadline: float) -> str:
    """Return the metrics served at the port, waiting until a scheduler serves them."""
    while True:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        except httpx.ConnectError:
            assert time.monotonic() < deadline, "no metrics are served"
            time.sleep(0.1)


def test_two_schedulers_reap_settle_and_stop_on_sigterm(
    settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    lost, ended = running(resources), in_state(resources, State.SUCCEEDED)
    with resources.database.transaction() as transaction:
        transaction.execute(
            text("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = :id"),
            {"id": lost.id},
        )
    port, log = free_port(), tmp_path / "log"
    watched = settings.model_copy(update={"worker_metrics_port": port})
    with scheduler(watched, log) as first, scheduler(settings, log) as second:
        deadline = time.monotonic() + 60
        while True:
            requeued, settled = (jobs.get_job(resources, OPERATOR, job.id) for job in (lost, ended))
            if requeued.state is State.QUEUED and settled.expires_at is not None:
                break
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert "intraslice_jobs_reaped_total" in metrics_at(port, deadline)
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert len([entry for entry in entries if entry["event"] == "job_reaped"]) == 1
    assert {entry["process"] for entry in entries} == {"scheduler"}
    assert len([entry for entry in entries if entry["event"] == "scheduler_stopped"]) == 2


def test_a_worker_beside_a_scheduler_maintains_only_its_machine(settings: Settings) -> None:
    registration = Registration.of("worker", "0.1.0", 2**30, cpu_slots(1))
    assert maintenance_of_worker(settings, registration)[1:] == DEPLOYMENT_TASKS + MACHINE_TASKS
    without = settings.model_copy(update={"maintenance_in_worker": False})
    assert maintenance_of_worker(without, registration) == MACHINE_TASKS


def test_a_worker_renews_its_registration_before_it_looks_for_silent_ones(
    settings: Settings, resources: Resources
) -> None:
    registration = Registration.of("resumed", "0.1.0", 2**30, cpu_slots(1))
    fleet.register(resources, registration)
    miss_heartbeats(resources, "resumed")
    tasks = maintenance_of_worker(settings, registration)
    with capture_logs() as lines:
        MaintenanceThread(resources, tasks).run_tasks()
    assert "worker_silent" not in [line["event"] for line in lines]
    with resources.database.transaction() as transaction:
        query = "SELECT id FROM workers WHERE expires_at > now()"
        assert list(transaction.execute(text(query)).scalars()) == ["resumed"]
