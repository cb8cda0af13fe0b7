"""Migrations run, can be reverted, and create the tables that the code expects."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, NullPool, create_engine

from app.adapters.database.engine import Database
from app.adapters.database.migrate import downgrade, head_revision, upgrade
from app.adapters.database.tables import metadata
from app.domain.lifecycle import LEASED, State, legal_changes
from app.settings import Settings

pytestmark = pytest.mark.postgres


def tables(settings: Settings) -> set[str]:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        return {row[0] for row in connection.execute(query)}


def test_tables_can_be_created_removed_and_created_again(empty: Settings) -> None:
    upgrade(empty)
    assert tables(empty) == {*metadata.tables, "alembic_version"}
    downgrade(empty, "base")
    assert tables(empty) == {"alembic_version"}
    upgrade(empty)
    upgrade(empty)
    database = Database(empty.database_url)
    assert database.schema().revision == head_revision()
    database.close()


def test_migrated_tables_equal_those_of_the_code(empty: Settings) -> None:
    upgrade(empty)
    engine = create_engine(empty.database_url, poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_check_constraints_equal_those_of_the_code(empty: Settings) -> None:
    """Compare check constraints, which `compare_metadata` ignores."""
    query = (
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
    )
    constraints = []
    for create in (upgrade, _create_from_code):
        create(empty)
        with psycopg.connect(empty.database_url.replace("+psycopg", "")) as connection:
            constraints.append(dict(connection.execute(query).fetchall()))
        downgrade(empty, "base")
    assert constraints[0] == constraints[1]
    assert len(constraints[0]) == sum(
        isinstance(constraint, CheckConstraint)
        for table in metadata.tables.values()
        for constraint in table.constraints
    )


def test_the_trigger_allows_the_transitions_of_the_lifecycle(empty: Settings) -> None:
    upgrade(empty)
    insert = (
        "INSERT INTO jobs (id, project_id, state, model, compression, labels, max_attempts,"
        " lease_owner, lease_expires_at)"
        " VALUES ('j', 'p', %s, '{}', '{}', '{}', 3, %s, %s)"
    )
    allowed = set()
    with psycopg.connect(empty.database_url.replace("+psycopg", "")) as connection:
        for source, target in itertools.permutations(State, 2):
            lease = ("w", "2030-01-01") if source in LEASED else (None, None)
            connection.execute(insert, (source, *lease))
            lease = ("w", "2030-01-01") if target in LEASED else (None, None)
            rejected: list[str | None] = []
            try:
                with connection.transaction():
                    connection.execute(
                        "UPDATE jobs SET state = %s, lease_owner = %s, lease_expires_at = %s",
                        (target, *lease),
                    )
            except psycopg.errors.CheckViolation as error:
                rejected.append(error.diag.constraint_name)
            assert rejected in ([], ["job_transition"])
            if not rejected:
                allowed.add((source, target))
            connection.execute("DELETE FROM jobs")
    assert allowed == legal_changes()


def _create_from_code(settings: Settings) -> None:
    engine = create_engine(settings.database_url, poolclass=NullPool)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{head_revision()}')")


def test_concurrent_migrations_do_not_collide(empty: Settings) -> None:
    script = (
        "import sys; from app.adapters.database.migrate import upgrade;"
        "from app.settings import Settings; upgrade(Settings(database_url=sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, empty.database_url]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]


def test_migrations_run_from_any_directory(
    empty: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    upgrade(empty)
    assert "jobs" in tables(empty)
