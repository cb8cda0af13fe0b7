"""`intraslice migrate` reports what it did, and downgrades only as far as it is allowed to."""

from __future__ import annotations

import psycopg
import pytest

from app.adapters.database.migrate import downgrade, head_revision, migrations, upgrade
from app.settings import Settings
from tests.migrations.conftest import Run
from tests.migrations.test_migrations import tables

pytestmark = pytest.mark.postgres
HEAD = head_revision()
NAMES = [migration.name for migration in migrations()]


def test_a_new_database_is_created_and_a_second_run_changes_nothing(run: Run) -> None:
    created = run()
    assert created.exit_code == 0, created.output
    expected = f"the schema was created, is at {HEAD} now ({len(NAMES)} migrations)\n"
    assert created.stdout == expected
    again = run()
    assert (again.exit_code, again.stdout) == (0, f"the schema is already at {HEAD}\n")


def test_an_upgrade_names_its_migrations(empty: Settings, run: Run) -> None:
    upgrade(empty, "0012")
    ended = run("--to", "0013")
    assert ended.stdout == (
        "the schema was at 0012, is at 0013 now (1 migration: 0013_deployment);"
        f" this version needs {HEAD}\n"
    )
    downgrade(empty, "0012")
    names = NAMES[12:]
    ended = run()
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == (
        f"the schema was at 0012, is at {HEAD} now ({len(names)} migrations: {', '.join(names)})\n"
    )


def test_show_lists_pending_migrations_and_changes_nothing(empty: Settings, run: Run) -> None:
    upgrade(empty, "0012")
    before = tables(empty)
    shown = run("--show")
    assert shown.exit_code == 0, shown.output
    assert [line.split() for line in shown.stdout.splitlines()] == [
        ["schema", "0012"],
        ["this", "version", HEAD],
        ["works", "with", "versions", "at", "0012"],
        *(["pending", name] for name in NAMES[12:]),
    ]
    assert tables(empty) == before


def test_a_downgrade_that_drops_data_needs_yes(empty: Settings, run: Run) -> None:
    upgrade(empty)
    rejected = run("--to", "0010")
    assert rejected.exit_code == 2
    assert rejected.stdout == ""
    assert f"a downgrade from {HEAD} to 0010 drops " in rejected.stderr
    assert "which methods sweeps compare; their jobs stay (0015_sweep_methods)" in rejected.stderr
    assert "the names of uploads (0011_upload_names)" in rejected.stderr
    assert rejected.stderr.endswith("repeat with --yes\n")
    assert "deployment" in tables(empty)
    done = run("--to", "0010", "--yes")
    assert done.exit_code == 0, done.output
    first, *dropped = done.stdout.splitlines()
    names = ", ".join(reversed(NAMES[10:]))
    assert first == (
        f"the schema was at {HEAD}, is at 0010 now (downgrade, {len(NAMES) - 10} migrations"
        f" reverted: {names}); this version needs {HEAD}"
    )
    assert all(line.startswith("dropped: ") for line in dropped)
    expected = (
        "names requested for registry hand-offs",
        "durations of finished jobs",
        "how much GPU memory queued jobs need",
        "which methods sweeps compare",
        "the names of uploads",
    )
    begins = [next(i for i, line in enumerate(dropped) if text in line) for text in expected]
    assert begins == sorted(begins)  # the newest migration is reverted first
    assert "deployment" not in tables(empty)


def test_a_downgrade_that_drops_nothing_needs_no_confirmation(empty: Settings, run: Run) -> None:
    upgrade(empty, "0012")
    done = run("--to", "0011")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("the schema was at 0012, is at 0011 now (downgrade, 1 migration")


@pytest.mark.parametrize("revision", ["9999", "13", "0013_deployment", "0012:0013", "-1"])
def test_an_unknown_revision_is_one_line(run: Run, revision: str) -> None:
    ended = run("--to", revision)
    assert ended.exit_code == 2
    assert ended.stderr == (
        f"error: revision {revision!r} is unknown: this version has 0001 to {HEAD}\n"
    )


def test_an_unreachable_server_is_one_line(run: Run) -> None:
    ended = run(database_url="postgresql+psycopg://nobody@/none?host=/nonexistent")
    assert ended.exit_code != 0
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


def test_a_role_that_may_not_create_tables_is_one_line(empty: Settings, run: Run) -> None:
    plain = empty.database_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
    try:
        ended = run(database_url=empty.database_url.replace("://intraslice@", "://reader@"))
    finally:
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute("DROP ROLE reader")
    assert ended.exit_code == 2
    assert ended.stderr == (
        "error: the database's role may not change the schema: make it the owner of the database;"
        " nothing was changed\n"
    )
