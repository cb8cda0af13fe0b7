"""Migrations of a database with rows in every table and concurrent queries."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import Column, Connection, NullPool, Table, create_engine, insert, select, text

from app.adapters.database import leases
from app.adapters.database.engine import Database
from app.adapters.database.migrate import downgrade, head_revision, migrations, upgrade
from app.adapters.database.tables import metadata, schema_window
from app.domain.errors import MigrationError
from app.domain.worker import FreeSlots, Slot
from app.embedded.postgres import EmbeddedPostgres
from app.settings import Settings
from tests.app.fleets import CPU, gpu, slots

pytestmark = pytest.mark.postgres

KEPT = ("jobs", "events", "artifacts", "outbox")
"""Tables whose rows are kept by every migration down to the first and back."""

SPECIAL: dict[tuple[str, str], Any] = {
    ("jobs", "state"): "succeeded",
    ("jobs", "id"): "job_01J00000000000000000000000",
    ("jobs", "project_id"): "default",
    ("jobs", "max_attempts"): 3,
    ("jobs", "further_device_numbers"): [2],
    ("events", "type"): "queued",
    ("api_keys", "scope"): "read",
    ("webhook_deliveries", "state"): "delivered",
    ("hand_offs", "state"): "done",
    ("generations", "state"): "queued",
    ("uploads", "kind"): "text",
    ("uploads", "state"): "open",
}
"""Values of columns with check constraints; a new table with a check needs an entry here."""
BY_TYPE: dict[type, Any] = {
    str: "x",
    int: 1,
    float: 1.0,
    bool: True,
    object: {"a": 1},  # JSON
    list: ["x"],
    bytes: b"x",
    datetime: datetime(2026, 1, 1, tzinfo=UTC),
}


@pytest.fixture
def used(postgres_server: EmbeddedPostgres) -> Iterator[Settings]:
    """Settings of a new migrated database with a row in every table."""
    name = f"used_{uuid.uuid4().hex}"
    admin = postgres_server.url.replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    settings = Settings(database_url=postgres_server.url.replace("/intraslice?", f"/{name}?"))
    upgrade(settings)
    with create_engine(settings.database_url, poolclass=NullPool).begin() as opened:
        fill(opened)
    yield settings
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fill(connection: Connection) -> None:
    rows: dict[str, Any] = {}
    for table in metadata.sorted_tables:
        if table is schema_window:  # the migration wrote its row
            continue
        values = {column.name: value(column, rows) for column in table.c if is_needed(column)}
        rows[table.name] = connection.execute(
            insert(table).values(values).returning(*table.c)
        ).one()


def is_needed(column: Column[Any]) -> bool:
    return not column.nullable and column.server_default is None and column.identity is None


def value(column: Column[Any], rows: dict[str, Any]) -> Any:
    for key in column.foreign_keys:
        return getattr(rows[key.column.table.name], key.column.name)
    special = SPECIAL.get((column.table.name, column.name))
    return BY_TYPE[column.type.python_type] if special is None else special


def contents(settings: Settings, table: Table) -> list[dict[str, Any]]:
    with create_engine(settings.database_url, poolclass=NullPool).connect() as connection:
        return [dict(row._mapping) for row in connection.execute(select(table))]


def revisions() -> list[str]:
    """Return the revisions from the newest to the first."""
    return [migration.revision for migration in reversed(migrations())]


def test_rows_survive_every_step_down_and_up_again(used: Settings) -> None:
    before = {name: contents(used, metadata.tables[name]) for name in KEPT}
    assert all(len(rows) == 1 for rows in before.values())
    for revision in revisions()[1:]:
        downgrade(used, revision)
    for revision in reversed(revisions()):
        upgrade(used, revision)
    for name in KEPT:
        assert contents(used, metadata.tables[name]) == before[name], name


def test_a_migration_fails_on_a_locked_table_and_changes_nothing(used: Settings) -> None:
    """A migration that waits for its lock would block every later query."""
    first = revisions()[1]
    plain = used.database_url.replace("+psycopg", "")
    with psycopg.connect(plain) as reader:
        for name in metadata.tables:  # the newest migration may change any of them
            reader.execute(f"SELECT * FROM {name}").fetchall()
        with pytest.raises(MigrationError, match="lock timeout"):
            downgrade(used, first)
    with create_engine(used.database_url, poolclass=NullPool).connect() as connection:
        version = connection.scalar(text("SELECT version_num FROM alembic_version"))
    assert version == head_revision()


def test_a_transaction_that_writes_a_job_it_has_locked_delays_the_migration(used: Settings) -> None:
    """A migration that raised its lock on the table would end one of both as a deadlock."""
    downgrade(used, "0016")
    plain = used.database_url.replace("+psycopg", "")
    waiting = """SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE datname = current_database() AND NOT granted AND mode = 'AccessExclusiveLock'"""
    with (
        ThreadPoolExecutor(1) as threads,
        psycopg.connect(plain, autocommit=True) as observer,
        psycopg.connect(plain) as writer,
    ):
        writer.execute("SELECT id FROM jobs FOR UPDATE")
        migrated = threads.submit(upgrade, used)
        while observer.execute(waiting).fetchone() == (0,):
            assert not migrated.done(), migrated.exception()
            time.sleep(0.01)
        writer.execute("UPDATE jobs SET labels = labels")
        writer.commit()
        migrated.result()


LATER_COLUMNS = (
    *("store_prefix", "artifacts_checked_at", "artifacts_missing_at"),
    *("gpu_bytes", "host_bytes", "device_number", "further_device_numbers", "worked_seconds"),
    "text_columns",
)
"""Columns of jobs and uploads that revisions from 0013 on add."""


def rows_without_new_columns(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    with create_engine(settings.database_url, poolclass=NullPool).connect() as connection:
        return {
            table: [
                {k: v for k, v in row._mapping.items() if k not in LATER_COLUMNS}
                for row in connection.execute(text(f"SELECT * FROM {table}"))
            ]
            for table in ("jobs", "uploads", "artifacts", "events", "api_keys", "webhooks")
        }


def scalars(settings: Settings, query: str) -> list[Any]:
    with create_engine(settings.database_url, poolclass=NullPool).connect() as connection:
        return list(connection.scalars(text(query)))


def test_a_rollback_to_0012_and_a_new_upgrade_restore_the_deployment(used: Settings) -> None:
    with create_engine(used.database_url, poolclass=NullPool).begin() as opened:
        for table in ("jobs", "uploads"):
            opened.execute(text(f"UPDATE {table} SET store_prefix = 'dep_1/'"))
        opened.execute(text("DELETE FROM deployment"))
        opened.execute(
            text("INSERT INTO deployment VALUES (true, 'dep_1', '2026-01-02', '2026-01-03')")
        )
        # As code at 0012 wrote them while the schema was newer, and its uploads' quotes.
        for table in ("jobs", "uploads"):
            copied_row(opened, table, "former'id")
    before = rows_without_new_columns(used)
    deployment = scalars(used, "SELECT row_to_json(deployment) FROM deployment")
    downgrade(used, "0012")
    assert rows_without_new_columns(used) == before
    names = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    assert not {"deployment", "orphans", "schema_window"} & set(scalars(used, names))
    with create_engine(used.database_url, poolclass=NullPool).begin() as opened:
        copied_row(opened, "jobs", "made-at-0012", created_at="now() + interval '1 s'")
    upgrade(used)
    assert scalars(used, "SELECT row_to_json(deployment) FROM deployment") == deployment
    prefixes = dict.fromkeys(scalars(used, "SELECT id FROM jobs"), "dep_1/")
    prefixes |= {"former'id": "", "made-at-0012": ""}
    query = "SELECT json_object_agg(id, store_prefix) FROM {}"
    assert scalars(used, query.format("jobs")) == [prefixes]
    (uploads,) = scalars(used, query.format("uploads"))
    assert sorted(uploads.values()) == ["", "dep_1/"]
    assert scalars(used, "SELECT obj_description('uploads'::regclass)") == [None]
    assert scalars(used, "SELECT oldest_revision FROM schema_window") == ["0012"]


def copied_row(opened: Connection, table: str, new_id: str, created_at: str = "created_at") -> None:
    """Copy the table's first row under another id, without the columns of later revisions."""
    skipped = (*LATER_COLUMNS, "id", "created_at")
    listed = ", ".join(
        column.name for column in metadata.tables[table].columns if column.name not in skipped
    )
    opened.execute(
        text(
            f"INSERT INTO {table} (id, created_at, {listed})"
            f" SELECT :id, {created_at}, {listed} FROM {table} LIMIT 1"
        ),
        {"id": new_id},
    )


METHODS = [("intraslice", "intraslice_plus"), ("paper", "intraslice"), ("magnitude", "magnitude")]
"""Names before and after revision 0012."""


def methods(settings: Settings) -> dict[str, list[Any]]:
    """Return the values of every column that names a method, ordered by key."""
    queries = {
        "jobs": "SELECT compression ->> 'method' FROM jobs ORDER BY id",
        "reports": "SELECT report ->> 'method' FROM jobs WHERE report IS NOT NULL ORDER BY id",
        "report settings": "SELECT report #>> '{config,method}' FROM jobs "
        "WHERE report IS NOT NULL ORDER BY id",
        "report versions": "SELECT report -> 'schema_version' FROM jobs "
        "WHERE report IS NOT NULL ORDER BY id",
        "sweeps": "SELECT compression ->> 'method' FROM sweeps ORDER BY id",
        "rates": "SELECT method FROM rates WHERE device = 'cpu' ORDER BY per_second",
    }
    with create_engine(settings.database_url, poolclass=NullPool).connect() as connection:
        return {name: list(connection.scalars(text(query))) for name, query in queries.items()}


def named_after(version: int, names: list[str]) -> dict[str, list[Any]]:
    """Return the expected result of `methods` for three jobs, their sweeps and the first rows."""
    return {
        "jobs": [None, *names],
        "reports": names,
        "report settings": names,
        "report versions": [version] * 3,
        "sweeps": [*names, None],
        "rates": names,
    }


def test_methods_are_renamed_in_stored_jobs_and_back(used: Settings) -> None:
    before, after = ([pair[side] for pair in METHODS] for side in (0, 1))
    downgrade(used, "0011")
    with create_engine(used.database_url, poolclass=NullPool).begin() as opened:
        for number, method in enumerate(before):
            sweep = {"id": f"swp_{number}", "project_id": "default", "ratios": [0.3]}
            job = {"id": f"job_9{number}", "project_id": "default", "state": "succeeded"}
            report = {"method": method, "config": {"method": method, "ratio": 0.3}}
            settings = {"method": method, "ratio": 0.3}
            common: dict[str, Any] = {"model": {}, "compression": settings, "labels": {}}
            opened.execute(
                insert(metadata.tables["sweeps"]).values(**sweep, **common, request_hash="x")
            )
            opened.execute(
                insert(metadata.tables["jobs"]).values(
                    **job, **common, report=report | {"schema_version": 1}, max_attempts=3
                )
            )
            opened.execute(
                insert(metadata.tables["rates"]).values(
                    device="cpu", method=method, stage="compress", per_second=float(number)
                )
            )
    assert methods(used) == named_after(1, before)
    upgrade(used)
    assert methods(used) == named_after(2, after)
    downgrade(used, "0011")
    assert methods(used) == named_after(1, before)


PUSHES = [
    ("a", "2026-01-03", "hub", "acme/Small at 0f"),
    ("b", "2026-01-02", "hub", "Acme/small at 1e"),
    ("b", "2026-01-04", "hub", "acme/large at 2d"),
    ("c", "2026-01-01", "mlflow", "acme/large version 1"),
    ("c", "2026-01-01", "hub", None),
]
"""Project, end, target and reference of hand-offs."""


def test_repositories_belong_to_the_project_that_pushed_first_before_0023(used: Settings) -> None:
    downgrade(used, "0022")
    with create_engine(used.database_url, poolclass=NullPool).begin() as opened:
        for number, (project, finished_at, target, reference) in enumerate(PUSHES):
            job = f"job_8{number}"
            copied_row(opened, "jobs", job)
            moved = text("UPDATE jobs SET project_id = :project WHERE id = :job")
            opened.execute(moved, {"project": project, "job": job})
            opened.execute(
                insert(metadata.tables["hand_offs"]).values(
                    job_id=job,
                    target=target,
                    state="done" if reference else "failed",
                    finished_at=datetime.fromisoformat(f"{finished_at}T00:00:00+00:00"),
                    reference=reference,
                )
            )
    upgrade(used)
    query = "SELECT row_to_json(r) FROM (SELECT repository, project_id, created_at::date::text"
    assert scalars(used, f"{query} FROM hub_repositories ORDER BY repository) AS r") == [
        {"repository": "acme/large", "project_id": "b", "created_at": "2026-01-04"},
        {"repository": "acme/small", "project_id": "b", "created_at": "2026-01-02"},
    ]


EARLIER_CLAIM = """
UPDATE jobs SET state = 'running', lease_owner = 'earlier', fencing_token = fencing_token + 1,
  lease_expires_at = now() + interval '30 s', attempt = attempt + 1, claimed_at = now()
WHERE id = (
  SELECT id FROM jobs WHERE state = 'queued' ORDER BY priority DESC, id LIMIT 1
  FOR UPDATE SKIP LOCKED
) RETURNING id
"""
"""The claim of workers before revision 0016."""


def queue_job(settings: Settings, job_id: str, device: str) -> None:
    """Insert a queued job as code before revision 0016 does."""
    statement = (
        "INSERT INTO jobs (id, project_id, state, model, compression, labels, max_attempts)"
        ' VALUES (:id, \'default\', \'queued\', \'{"source": "package", "ref": "m"}\','
        " jsonb_build_object('ratio', 0.3, 'device', CAST(:device AS text)), '{}', 3)"
    )
    with create_engine(settings.database_url, poolclass=NullPool).begin() as opened:
        opened.execute(text(statement), {"id": job_id, "device": device})


def claim(settings: Settings, slot: Slot) -> str | None:
    database = Database(settings.database_url)
    try:
        with database.transaction() as transaction:
            job = leases.claim_next(transaction, "new", 30.0, FreeSlots.of(slot))
    finally:
        database.close()
    return None if job is None else job.id


def test_new_workers_run_jobs_of_before_0016_and_earlier_workers_run_new_ones(
    used: Settings,
) -> None:
    downgrade(used, "0015")
    queue_job(used, "job_01J00000000000000000000001", "cuda:1")
    upgrade(used)
    queue_job(used, "job_01J00000000000000000000002", "auto")
    queue_job(used, "job_01J00000000000000000000003", "gpu")
    on_cpu, on_gpu = slots(CPU, gpu(8))
    assert claim(used, on_cpu) == "job_01J00000000000000000000002"
    assert claim(used, on_gpu) == "job_01J00000000000000000000001"
    with create_engine(used.database_url, poolclass=NullPool).begin() as opened:
        assert opened.scalar(text(EARLIER_CLAIM)) == "job_01J00000000000000000000003"
