"""Everyday mistakes end a command with one line and an exit code, never with a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.valkey import EmbeddedValkey
from app.settings import Settings
from tests.intraslice_core.tiny_models import tiny_llama

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
SECRET = "hunter-two"
PROCESSES = ("serve", "worker", "scheduler")
COMMANDS = (*PROCESSES, "migrate", "keys list", "maintenance")


@dataclass
class Case:
    """A command, its environment, and the error that is expected."""

    command: str
    environment: dict[str, str]
    code: int
    complaint: str


@pytest.fixture
def guarded_broker(tmp_path: Path) -> Iterator[str]:
    """URL of a broker, with a password that it does not accept."""
    with EmbeddedValkey(tmp_path / "valkey") as server:
        with redis.Redis.from_url(server.redis_url) as client:
            client.config_set("requirepass", "right")
        yield server.url.replace("socket://", f"socket://:{SECRET}@")


@pytest.fixture
def bare_database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """URL of a database that was never migrated."""
    plain = postgres_server.url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as server:
        server.execute("CREATE DATABASE bare")
        yield postgres_server.url.replace("/intraslice?", "/bare?")
        server.execute("DROP DATABASE bare WITH (FORCE)")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def cases(
    settings: Settings,
    tmp_path: Path,
    guarded_broker: str,
    bare_database: str,
    unused_tcp_port: int,
    taken_port: int,
) -> list[Case]:
    good = {
        "INTRASLICE_DATA_DIR": str(settings.data_dir),
        "INTRASLICE_DATABASE_URL": settings.database_url,
        "INTRASLICE_BROKER_URL": settings.broker_url,
        "INTRASLICE_AUTH": "off",
        "INTRASLICE_PORT": "0",
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    (tmp_path / "file").touch()
    unknown = settings.database_url.replace("/intraslice?", "/nowhere?")
    closed = f"postgresql://joe:{SECRET}@127.0.0.1:{unused_tcp_port}/x"

    def case(command: str, code: int, complaint: str, **changes: str) -> Case:
        variables = {f"INTRASLICE_{name}": value for name, value in changes.items()}
        return Case(command, good | variables, code, complaint)

    return [
        *(
            case(command, 1, 'database "nowhere" does not exist', DATABASE_URL=unknown)
            for command in COMMANDS
        ),
        *(
            case(command, 5, f"127.0.0.1:{unused_tcp_port}", DATABASE_URL=closed)
            for command in ("migrate", "keys list", "maintenance")
        ),
        *(
            case(command, 1, "run intraslice migrate", DATABASE_URL=bare_database)
            for command in ("worker", "scheduler", "keys list", "maintenance")
        ),
        *(
            case(command, 1, "invalid username-password", BROKER_URL=guarded_broker)
            for command in PROCESSES
        ),
        *(
            case(command, 2, "INTRASLICE_PORT=abc: ", PORT="abc")
            for command in (*COMMANDS, "up", "healthcheck")
        ),
        *(
            case(command, 2, "INTRASLICE_DATA_DIR: ", DATA_DIR=str(tmp_path / "file" / "x"))
            for command in (*PROCESSES, "keys list")
        ),
        *(
            case(command, 2, "INTRASLICE_ARTIFACT_STORE: ", ARTIFACT_STORE="file:///proc/no/x")
            for command in PROCESSES
        ),
        *(
            case(
                command,
                2,
                f"INTRASLICE_WORKER_METRICS_PORT: cannot listen on 127.0.0.1:{taken_port}",
                WORKER_METRICS_PORT=str(taken_port),
            )
            for command in ("worker", "scheduler")
        ),
        case(
            "serve",
            2,
            f"INTRASLICE_PORT: cannot listen on 127.0.0.1:{taken_port}",
            PORT=str(taken_port),
        ),
        case("worker", 2, "INTRASLICE_LEASE_SECONDS (2) must be", LEASE_SECONDS="2"),
        case("serve", 2, "INTRASLICE_AUTH=off requires a loopback host", HOST="192.0.2.1"),
        case(f"up --data-dir {tmp_path}/file/x", 1, f"{tmp_path}/file/x: Not a directory"),
        case("migrate", 2, "relative path", MODEL_ROOTS="models"),
        case("list", 2, "INTRASLICE_API_KEY: ", API_KEY="schlüssel"),
        case(
            f"compress {tiny_llama(tmp_path / 'tiny')} --out {tmp_path}/file/x --ratio 0.3",
            2,
            f"{tmp_path}/file",
        ),
    ]


def test_mistakes_end_with_one_line(cases: list[Case]) -> None:
    request = [[case.command.split(), case.environment] for case in cases]
    done = subprocess.run(
        [sys.executable, "-m", "tests.app.cli.invoke_many"],
        input=json.dumps(request),
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    for case, (code, stderr, unexpected) in zip(
        cases, json.loads(done.stdout.splitlines()[-1]), strict=True
    ):
        context = (case, code, stderr)
        assert unexpected is None, context
        assert code == case.code, context
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, context
        assert stderr.splitlines()[-1] == errors[0], context
        assert case.complaint in errors[0], context
        assert SECRET not in stderr, context
        assert "Traceback" not in stderr, context
