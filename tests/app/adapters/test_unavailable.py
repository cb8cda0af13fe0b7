"""Errors of servers name the server and its reason, never the password."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import redis
from fastapi.testclient import TestClient

from app.adapters.database import jobs
from app.adapters.database.engine import Database
from app.adapters.queue import WakeQueue, make_celery
from app.adapters.storage import ArtifactStore
from app.domain.errors import UnavailableError
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.seaweed import EmbeddedS3
from app.embedded.valkey import EmbeddedValkey
from app.main import create_app
from app.settings import Settings
from app.settings.store_endpoints import own_endpoint
from intraslice_core.errors import ConfigurationError

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
SECRET = "hunter-two"


@pytest.fixture
def role(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """Name of a role that may log in and nothing else, in a database without tables."""
    with psycopg.connect(postgres_server.url.replace("+psycopg", ""), autocommit=True) as server:
        server.execute("CREATE ROLE joe LOGIN")
        server.execute("CREATE DATABASE bare OWNER joe")
        server.execute("CREATE DATABASE locked")
        server.execute("REVOKE CONNECT ON DATABASE locked FROM PUBLIC")
        yield "joe"
        server.execute("DROP DATABASE bare WITH (FORCE)")
        server.execute("DROP DATABASE locked WITH (FORCE)")
        server.execute("DROP ROLE joe")


@pytest.mark.parametrize(
    ("user", "name", "reason"),
    [
        ("joe", "nowhere", 'database "nowhere" does not exist'),
        ("nobody", "bare", 'role "nobody" does not exist'),
        ("joe", "locked", 'permission denied for database "locked"'),
    ],
)
def test_a_database_that_rejects_the_connection_is_named_with_its_reason(
    postgres_server: EmbeddedPostgres, role: str, user: str, name: str, reason: str
) -> None:
    sockets = postgres_server.socket_directory
    url = f"postgresql+psycopg://{user}:{SECRET}@/{name}?host={sockets}"
    with closing(Database(url)) as database, pytest.raises(UnavailableError) as caught:
        database.schema()
    assert caught.value.message == f"PostgreSQL at socket {sockets}, database {name}: {reason}"
    assert caught.value.rejected


@pytest.mark.parametrize(
    ("host", "reason"),
    [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "Name or service not known")],
)
def test_an_unreachable_database_is_waited_for(
    unused_tcp_port: int, host: str, reason: str
) -> None:
    url = f"postgresql+psycopg://joe:{SECRET}@{host}:{unused_tcp_port}/x"
    with closing(Database(url)) as database, pytest.raises(UnavailableError) as caught:
        database.schema()
    assert caught.value.message.startswith(f"PostgreSQL at {host}:{unused_tcp_port}, database x: ")
    assert caught.value.message.endswith(reason)
    assert not caught.value.rejected
    assert SECRET not in caught.value.message


def test_a_database_without_tables_is_to_be_migrated(
    postgres_server: EmbeddedPostgres, role: str, settings: Settings
) -> None:
    url = f"postgresql+psycopg://joe@/bare?host={postgres_server.socket_directory}"
    bare = settings.model_copy(update={"database_url": url})
    with TestClient(create_app(bare), raise_server_exceptions=False) as client:
        answer = client.get("/v1/jobs").json()
    # Callers of the API learn nothing about hosts.
    assert (answer["code"], answer["detail"]) == (
        "database_unavailable",
        "The database does not answer",
    )
    with closing(Database(url)) as database, pytest.raises(UnavailableError) as caught:
        database.read(lambda transaction: jobs.find(transaction, "job_1"))
    assert "run intraslice migrate" in caught.value.message
    assert caught.value.rejected


@pytest.fixture
def guarded_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        with redis.Redis.from_url(server.redis_url) as client:
            client.config_set("requirepass", "right")
        yield server


@pytest.mark.parametrize("password", ["", f":{SECRET}@"])
def test_a_broker_that_rejects_the_password_is_named(
    guarded_valkey: EmbeddedValkey, password: str
) -> None:
    url = guarded_valkey.url.replace("socket://", f"socket://{password}")
    queue = WakeQueue(make_celery(url), str)
    with closing(queue), pytest.raises(UnavailableError) as caught:
        queue.check()
    assert caught.value.message.startswith(f"Valkey at {guarded_valkey.socket}: ")
    assert caught.value.rejected
    assert SECRET not in caught.value.message


def test_an_unreachable_broker_is_waited_for(unused_tcp_port: int) -> None:
    queue = WakeQueue(make_celery(f"redis://:{SECRET}@127.0.0.1:{unused_tcp_port}/0"), str)
    with closing(queue), pytest.raises(UnavailableError) as caught:
        queue.check()
    assert caught.value.message.startswith(f"Valkey at 127.0.0.1:{unused_tcp_port}: ")
    assert "Connection refused" in caught.value.message
    assert not caught.value.rejected
    assert SECRET not in caught.value.message


@pytest.mark.object_store
@pytest.mark.parametrize(
    ("changes", "url", "reason", "rejected"),
    [
        ({"AWS_SECRET_ACCESS_KEY": SECRET}, "s3://intraslice", "SignatureDoesNotMatch: ", True),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "s3://intraslice", "InvalidAccessKeyId: ", True),
        ({}, "s3://nowhere", "NoSuchBucket: ", True),
        ({"AWS_ENDPOINT": "http://127.0.0.1:1"}, "s3://intraslice", "Connection refused", False),
    ],
)
def test_a_store_is_named_with_its_reason(
    s3_server: EmbeddedS3,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    url: str,
    reason: str,
    rejected: bool,
) -> None:
    environment = s3_server.environment | changes
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = ArtifactStore(url, endpoint=own_endpoint(url))
    # The client repeats refused connections for seconds: one request is enough.
    requests = (store.check, lambda: store.keys("a")) if rejected else (store.check,)
    for request in requests:
        with pytest.raises(UnavailableError) as caught:
            request()
        message = caught.value.message
        assert message.startswith(f"The artifact store {url} at {environment['AWS_ENDPOINT']} ")
        assert reason in message
        assert caught.value.rejected is rejected
        assert SECRET not in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("url", "environment", "field"),
    [
        ("ftp://host/x", {}, "INTRASLICE_ARTIFACT_STORE"),
        ("file:///proc/nothing/here", {}, "INTRASLICE_ARTIFACT_STORE"),
        ("s3://bucket", {"AWS_ENDPOINT": "s3:8333"}, "AWS_ENDPOINT"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://s3:8333"}, "AWS_ENDPOINT_URL"),
    ],
)
def test_a_store_that_cannot_be_opened_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], field: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        ArtifactStore(url)
    assert caught.value.field == field
