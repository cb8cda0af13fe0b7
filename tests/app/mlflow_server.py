"""A real MLflow server on a free port, in its own environment: this one has only the client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

_SERVER = "mlflow==3.17.2"
_START_SECONDS = 120.0


def _environment_with_server() -> Path:
    """Create the environment once per machine; a second process waits for the first."""
    import fcntl

    place = Path(tempfile.gettempdir()) / f"intraslice-tests-{os.getuid()}-{_SERVER}"
    place.mkdir(mode=0o700, exist_ok=True)
    done = place / ".installed"
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
            pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            command = [*pip, "install", "--quiet", _SERVER]
            installed = subprocess.run(command, capture_output=True, text=True)
            if installed.returncode != 0:
                pytest.skip(f"{_SERVER} could not be installed: {installed.stderr[-300:]}")
            done.touch()
    return place


@contextmanager
def mlflow_server(directory: Path) -> Iterator[str]:
    """Run a server and yield its URL; only the server writes to `directory`."""
    program = _environment_with_server() / "bin" / "mlflow"
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(str(program), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{directory}/mlflow.db"),
        *("--artifacts-destination", str(directory / "artifacts")),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **quiet},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _await(url, server, directory / "log")
            yield url
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _await(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            if httpx.get(f"{url}/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])
