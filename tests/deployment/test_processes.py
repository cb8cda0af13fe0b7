"""Services of docker-compose.yml as plain processes, with their commands and environments.

Only the host names are replaced, by servers on this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.seaweed import EmbeddedS3
from app.embedded.valkey import EmbeddedValkey
from tests.deployment.compose import filled_environment, load
from tests.intraslice_core.tiny_models import tiny_llama
from tests.workers.test_worker import body

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.broker,
    pytest.mark.object_store,
]
READY_SECONDS = 120
JOB_SECONDS = 300


class Deployment:
    """Services of the file, run as processes."""

    def __init__(self, directory: Path, hosts: dict[str, str]) -> None:
        self.variables = filled_environment()
        self.services = load(self.variables)["services"]
        self._directory = directory
        self._hosts = hosts

    def environment(self, name: str) -> dict[str, str]:
        """Return a service's environment with this machine's hosts, without the tests' settings."""
        inherited = {key: value for key, value in os.environ.items() if "INTRASLICE" not in key}
        return inherited | {
            # Set by the image.
            "INTRASLICE_DATA_DIR": str(self._directory / name),
            "HF_HOME": str(self._directory / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            **{
                key: self._here(str(value))
                for key, value in self.services[name]["environment"].items()
            },
        }

    def log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        command = self.services[name]["command"]
        assert command[0] == "intraslice"
        program = [str(Path(sys.executable).with_name("intraslice")), *command[1:]]
        with self.log(name).open("ab") as stream:
            process = subprocess.Popen(
                program,
                cwd=self._directory,
                env=self.environment(name),
                stdout=stream,
                stderr=stream,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _here(self, value: str) -> str:
        for host, replacement in self._hosts.items():
            value = value.replace(host, replacement)
        return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def deployment(
    postgres_server: EmbeddedPostgres,
    valkey_server: EmbeddedValkey,
    broker_url: str,
    tmp_path: Path,
) -> Iterator[Deployment]:
    """Deployment with an empty database: the test runs the migrations."""
    plain = postgres_server.url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE DATABASE deployment")
    secrets = filled_environment()
    with EmbeddedS3(tmp_path / "s3", secrets["S3_SECRET_KEY"]) as store:
        sockets = postgres_server.socket_directory
        hosts = {
            "@postgres:5432/intraslice": f"@/deployment?host={sockets}",
            f"redis://:{secrets['VALKEY_PASSWORD']}@valkey:6379/0": broker_url,
            "http://s3:8333": store.endpoint,
            '["/models"]': f'["{tmp_path}"]',
        }
        yield Deployment(tmp_path, hosts)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("DROP DATABASE deployment WITH (FORCE)")


def with_free_ports(deployment: Deployment) -> str:
    """Give each process a free port, since they share the machine; return the API's URL."""
    port = str(free_port())
    deployment.services["api"]["environment"]["INTRASLICE_PORT"] = port
    for name in ("worker", "scheduler"):
        environment = {**deployment.services[name]["environment"]}
        environment["INTRASLICE_WORKER_METRICS_PORT"] = str(free_port())
        deployment.services[name]["environment"] = environment
    return f"http://127.0.0.1:{port}"


def wait_until_ready(client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    answer = ""
    while time.monotonic() < deadline:
        try:
            response = client.get("/readyz")
            if response.status_code == 200:
                return
            answer = response.text
        except httpx.TransportError as error:
            answer = repr(error)
        time.sleep(0.1)
    raise AssertionError((answer, log.read_text()[-3000:]))


def finished(client: httpx.Client, path: str, logs: list[Path]) -> dict[str, Any]:
    deadline = time.monotonic() + JOB_SECONDS
    while True:
        job: dict[str, Any] = client.get(path).raise_for_status().json()
        if job["state"] in {"succeeded", "failed", "cancelled"}:
            return job
        assert time.monotonic() < deadline, [job, *(log.read_text()[-3000:] for log in logs)]
        time.sleep(0.2)


def test_the_services_run_a_job_and_stop_on_their_signal(
    deployment: Deployment, tmp_path: Path
) -> None:
    base = with_free_ports(deployment)
    model = tiny_llama(tmp_path / "tiny")
    with deployment.running("migrate") as migrate:
        assert migrate.wait(120) == 0, deployment.log("migrate").read_text()
    key = {"Authorization": f"Bearer {deployment.variables['INTRASLICE_API_KEY']}"}
    names = ("api", "worker", "scheduler")
    logs = [deployment.log(name) for name in names]
    with ExitStack() as stack:
        processes = {name: stack.enter_context(deployment.running(name)) for name in names}
        client = stack.enter_context(httpx.Client(base_url=base, timeout=30, trust_env=False))
        wait_until_ready(client, deployment.log("api"))
        assert client.post("/v1/jobs", json=body(model)).status_code == 401
        client.headers.update(key)
        job = client.post("/v1/jobs", json=body(model)).raise_for_status().json()
        done = finished(client, job["urls"]["self"], logs)
        assert done["state"] == "succeeded", done["error"]
        files = client.get(job["urls"]["artifacts"]).raise_for_status().json()["data"]
        assert {"config.json", "manifest.json"} <= {file["name"] for file in files}
        config = next(file for file in files if file["name"] == "config.json")
        answer = client.get(config["url"], follow_redirects=True)
        assert len(answer.content) == config["bytes"]
        for name, process in processes.items():
            process.send_signal(getattr(signal, deployment.services[name]["stop_signal"]))
        for name, process in processes.items():
            assert process.wait(40) == 0, (name, deployment.log(name).read_text()[-3000:])
    text = "".join(log.read_text() for log in logs)
    for secret in ("INTRASLICE_API_KEY", "POSTGRES_PASSWORD", "S3_SECRET_KEY"):
        assert deployment.variables[secret] not in text
    shutil.rmtree(tmp_path / "s3", ignore_errors=True)
