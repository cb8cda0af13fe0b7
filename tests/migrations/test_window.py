"""Versions that work with the schema: readiness and `migrate` on newer and older schemas."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import structlog
from fastapi.testclient import TestClient

from app.adapters.database.engine import Database
from app.adapters.database.migrate import downgrade, head_revision, upgrade
from app.domain.errors import SchemaError
from app.domain.schema import Schema
from app.main import create_app
from app.services import schema
from app.services.schema import check_schema
from app.settings import Settings
from tests.migrations.conftest import Run
from tests.migrations.next_release import NextRelease

pytestmark = pytest.mark.postgres
HEAD = head_revision()


@pytest.fixture
def migrated(empty: Settings) -> Settings:
    upgrade(empty)
    return empty


@pytest.fixture
def database(migrated: Settings) -> Iterator[Database]:
    opened = Database(migrated.database_url)
    yield opened
    opened.close()


def execute(settings: Settings, statement: str) -> None:
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        connection.execute(statement)


def test_code_is_ready_on_its_own_schema(database: Database) -> None:
    assert check_schema(database) == HEAD


def test_a_newer_schema_within_the_window_is_accepted_and_logged_once(
    migrated: Settings, database: Database, next_release: NextRelease
) -> None:
    schema._report_newer.cache_clear()
    next_release.migrate(migrated, next_release.expanded)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert check_schema(database) == next_release.expanded
    events = [(entry["event"], entry["schema"], entry["code"]) for entry in logs]
    assert events == [("schema_is_newer_and_accepted", next_release.expanded, HEAD)]


def test_a_newer_schema_beyond_the_window_names_the_needed_version(
    migrated: Settings, database: Database, next_release: NextRelease
) -> None:
    next_release.migrate(migrated, next_release.contracted)
    needed = f"at {next_release.contracted} and needs .* at {next_release.expanded} or later"
    with pytest.raises(SchemaError, match=needed):
        check_schema(database)


def test_a_newer_schema_without_a_window_is_rejected(
    migrated: Settings, database: Database, next_release: NextRelease
) -> None:
    next_release.migrate(migrated, next_release.expanded)
    execute(migrated, "DELETE FROM schema_window")
    with pytest.raises(SchemaError, match=f"needs a version .* at {next_release.expanded}"):
        check_schema(database)


def test_an_older_and_an_empty_database_need_migrate(
    migrated: Settings, database: Database
) -> None:
    downgrade(migrated, "0013")
    older = f"^The schema is at 0013, {HEAD} is needed: run intraslice migrate$"
    with pytest.raises(SchemaError, match=older):
        check_schema(database)
    downgrade(migrated, "base")
    with pytest.raises(SchemaError, match=f"no schema, {HEAD} is needed: run intraslice migrate"):
        check_schema(database)


@pytest.mark.parametrize("revision", ["1a2b3c4d5e6f", "014", "00140"])
def test_the_schema_of_another_application_is_rejected(revision: str) -> None:
    problem = Schema(revision=revision, oldest_code="0001").problem(HEAD)
    assert problem is not None
    assert f"{revision!r}, which is not a revision of IntraSlice" in problem
    assert "INTRASLICE_DATABASE_URL" in problem


def test_readyz_shows_the_revision_and_accepts_the_newer_schema(
    migrated: Settings, settings: Settings, next_release: NextRelease
) -> None:
    deployment = settings.model_copy(update={"database_url": migrated.database_url})
    with TestClient(create_app(deployment)) as client:
        ready = client.get("/readyz")
        assert ready.status_code == 200, ready.text
        assert ready.json()["checks"]["database"] == {"ok": True, "problem": None, "schema": HEAD}
        next_release.migrate(migrated, next_release.expanded)
        ready = client.get("/readyz")
        assert ready.status_code == 200, ready.text
        assert ready.json()["checks"]["database"]["schema"] == next_release.expanded
        next_release.migrate(migrated, next_release.contracted)
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert next_release.expanded in ready.json()["checks"]["database"]["problem"]


def test_migrate_accepts_a_newer_schema_within_the_window(
    migrated: Settings, run: Run, next_release: NextRelease
) -> None:
    next_release.migrate(migrated, next_release.expanded)
    ended = run()
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == (
        f"the schema is at {next_release.expanded}, newer than {HEAD} of this version, which works"
        " with it; nothing was changed\n"
    )


def test_migrate_fails_with_one_line_on_a_schema_beyond_the_window(
    migrated: Settings, run: Run, next_release: NextRelease
) -> None:
    next_release.migrate(migrated, next_release.contracted)
    ended = run()
    assert ended.exit_code == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: The schema is at")
    assert f"needs a version of IntraSlice at {next_release.expanded} or later" in ended.stderr
    assert ended.stderr.count("\n") == 1
    shown = run("--show")
    assert shown.exit_code == 0
    assert f"versions at {next_release.expanded} to {next_release.contracted}" in shown.stdout
    assert "problem" in shown.stdout


def test_migrate_to_names_the_version_that_can_downgrade_a_newer_schema(
    migrated: Settings, run: Run, next_release: NextRelease
) -> None:
    next_release.migrate(migrated, next_release.expanded)
    ended = run("--to", HEAD, "--yes")
    assert ended.exit_code == 1
    assert "only the version that created it can change" in ended.stderr
