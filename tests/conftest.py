"""Fixtures: real servers per session, empty tables and an empty queue per test."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
import structlog
from fastapi.testclient import TestClient

from app.adapters.database.migrate import upgrade
from app.adapters.database.tables import metadata
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.seaweed import EmbeddedS3
from app.embedded.valkey import EmbeddedValkey
from app.main import create_app
from app.services.resources import Resources, open_resources
from app.settings import Settings

# No test may depend on what the Hub answers: nobody listens on this port. It is set before
# huggingface_hub is imported, and for processes of the tests.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"

# Some environments forbid bytecode. Hundreds of processes would compile the same modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

OPERATOR_KEY = "the-operators-key"

_EMPTY_TABLES = "; ".join(
    (
        "SET LOCAL session_replication_role = replica",  # no triggers, and tables in any order
        *(f"DELETE FROM {table}" for table in metadata.tables),
        "SELECT setval(oid::regclass, 1, false) FROM pg_class"
        " WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace",
    )
)
"""Statements that empty the database: 5 ms, where TRUNCATE creates all files anew in 20 ms."""
_LONG = frozenset({"deployment", "examples", "migrations", "system", "workers"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files first: several processes take files from the front, and should end together.

    Files with slow tests come first, then those of the directories that start processes.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.parent.name not in _LONG))


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Turn off structlog's coloured tracebacks, which take seconds to render."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        logger_factory=lambda *_: structlog.PrintLogger(),
    )


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedS3]:
    with EmbeddedS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def artifact_store() -> str:
    """URL of the artifact store; empty for a directory in `data_dir`. Modules override it."""
    return ""


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.object_store)])
def each_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once on a directory and once on S3, as an override of `artifact_store`."""
    if request.param == "directory":
        return ""
    server: EmbeddedS3 = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{server.url}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def migrated_url(postgres_server: EmbeddedPostgres) -> str:
    upgrade(Settings(database_url=postgres_server.url))
    return postgres_server.url


@pytest.fixture
def database_url(migrated_url: str) -> str:
    """URL of a migrated database without rows."""
    with psycopg.connect(migrated_url.replace("+psycopg", "")) as connection:
        connection.execute(_EMPTY_TABLES)
    return migrated_url


@pytest.fixture
def broker_url(valkey_server: EmbeddedValkey) -> str:
    """URL of an empty broker."""
    with redis.Redis.from_url(valkey_server.redis_url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def settings(tmp_path: Path, database_url: str, broker_url: str, artifact_store: str) -> Settings:
    """Settings with short intervals and the playground on, for models and texts in `tmp_path`."""
    return settings_in(tmp_path, database_url, broker_url, artifact_store)


def settings_in(
    directory: Path, database_url: str, broker_url: str, artifact_store: str = ""
) -> Settings:
    """Return the settings of tests, for models and texts in a directory."""
    return Settings(
        data_dir=directory / "data",
        database_url=database_url,
        broker_url=broker_url,
        artifact_store=artifact_store,
        auth="off",
        model_roots=(directory / "models",),
        data_roots=(directory / "texts",),
        hub_allow=("allowed/*",),
        heartbeat_seconds=0.1,
        lease_seconds=5.0,
        maintenance_seconds=0.2,
        child_grace_seconds=2.0,
        playground=True,
    )


@pytest.fixture
def resources(settings: Settings) -> Iterator[Resources]:
    opened = open_resources(settings)
    yield opened
    opened.close()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """Test client of the whole application in this process."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def closed(settings: Settings) -> Iterator[TestClient]:
    """Test client of an application that requires keys, as in a deployment."""
    changes = {"auth": "on", "api_key": OPERATOR_KEY, "requests_burst": 1_000_000}
    with TestClient(
        create_app(Settings(**settings.model_dump() | changes)), raise_server_exceptions=False
    ) as opened:
        yield opened


@pytest.fixture
def unused_tcp_port() -> int:
    """Port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
