"""Fixtures: databases without tables, a later version's migrations, the command."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli.main import app
from app.embedded.postgres import EmbeddedPostgres
from app.settings import Settings, get_settings
from tests.migrations.next_release import NextRelease, write_next_release

Run = Callable[..., Result]


@pytest.fixture
def empty(postgres_server: EmbeddedPostgres) -> Iterator[Settings]:
    """Settings of a new database without tables."""
    name = f"migrations_{uuid.uuid4().hex}"
    admin = postgres_server.url.replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield Settings(database_url=postgres_server.url.replace("/intraslice?", f"/{name}?"))
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def next_release(tmp_path: Path) -> NextRelease:
    return write_next_release(tmp_path)


@pytest.fixture
def run(empty: Settings) -> Iterator[Run]:
    """`intraslice migrate` on the new database."""

    def command(*arguments: str, database_url: str = empty.database_url) -> Result:
        get_settings.cache_clear()
        environment = {"INTRASLICE_DATABASE_URL": database_url}
        return CliRunner().invoke(app, ["migrate", *arguments], env=environment)

    yield command
    get_settings.cache_clear()
