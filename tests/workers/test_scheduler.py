"""The scheduler as a process, beside a worker that does not sweep."""

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

from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import jobs
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import in_state, running
from tests.app.environment import environment_of
from workers.main import steps_of
from workers.schedule import LOCAL_STEPS, SHARED_STEPS

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
    """What that port serves, once it does: the other scheduler may be done before."""
    while True:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        except httpx.ConnectError:
            assert time.monotonic() < deadline, "no metrics are served"
            time.sleep(0.1)


def test_two_schedulers_reap_and_settle_and_end_on_sigterm(
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
            found = [jobs.get_job(resources, OPERATOR, job.id) for job in (lost, ended)]
            if found[0].state is State.QUEUED and found[1].expires_at is not None:
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


def test_a_worker_beside_a_scheduler_does_only_what_concerns_its_machine(
    settings: Settings,
) -> None:
    assert steps_of(settings) == SHARED_STEPS + LOCAL_STEPS
    assert steps_of(settings.model_copy(update={"maintenance_in_worker": False})) == LOCAL_STEPS
