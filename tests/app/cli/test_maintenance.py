"""`intraslice maintenance`: what it lists is what it removes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator

import pytest
import structlog
from click.testing import Result
from sqlalchemy import text
from typer.testing import CliRunner

from app.cli.main import app
from app.domain.artifact import job_prefix
from app.domain.deployment import MARKER
from app.domain.lifecycle import State
from app.services import deployment, retention
from app.services.resources import Resources
from app.settings import Settings, get_settings
from tests.app.builders import in_state
from tests.app.environment import environment_of

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
Run = Callable[..., Result]


@pytest.fixture
def run(settings: Settings) -> Iterator[Run]:
    """The command with the environment of a deployment."""
    environment = {**environment_of(settings), "COLUMNS": "200"}

    def command(*arguments: str) -> Result:
        get_settings.cache_clear()
        return CliRunner().invoke(app, ["maintenance", *arguments], env=environment)

    logs, handlers = structlog.get_config(), logging.getLogger().handlers[:]
    yield command
    structlog.configure(**logs)
    logging.getLogger().handlers[:] = handlers
    logging.captureWarnings(False)
    get_settings.cache_clear()


def stored(resources: Resources) -> set[str]:
    return set(resources.store.keys(""))


def rows(resources: Resources) -> list[object]:
    """Return every row that a dry run must not change."""
    with resources.database.transaction() as transaction:
        return [
            transaction.execute(text(f"SELECT * FROM {table} ORDER BY 1")).all()
            for table in ("jobs", "artifacts", "layer_files", "uploads", "orphans", "deployment")
        ]


def let_a_month_pass(resources: Resources) -> None:
    with resources.database.transaction() as transaction:
        for statement in (
            "UPDATE jobs SET expires_at = expires_at - interval '31 days'",
            "UPDATE orphans SET listed_at = listed_at - interval '31 days'",
        ):
            transaction.execute(text(statement))
    for file in (resources.settings.data_dir / "artifacts").rglob("*"):
        if file.is_file():
            os.utime(file, (1_700_000_000, 1_700_000_000))


def test_a_dry_run_lists_what_the_run_removes_and_changes_nothing(
    run: Run, resources: Resources
) -> None:
    kept, expired, ended = (in_state(resources, State.SUCCEEDED) for _ in range(3))
    prefix = resources.deployment.id()
    assert run().exit_code == 0
    with resources.database.transaction() as transaction:
        transaction.execute(
            text("UPDATE jobs SET pinned = true, expires_at = NULL WHERE id <> :id"),
            {"id": expired.id},
        )
        transaction.execute(
            text("UPDATE jobs SET settled_at = NULL WHERE id = :id"), {"id": ended.id}
        )
    resources.store.put_new(f"{job_prefix(ended)}attempts/0/files/old.bin", b"old")
    for name in ("lost/x", "lost/y"):
        resources.store.put_new(f"{prefix}/jobs/{name}", b"12345")
    first = json.loads(run("--dry-run", "--json").stdout)
    (waiting,) = (entry for entry in first["removals"] if entry["due_at"])
    assert waiting["owner"] == f"{prefix}/jobs/lost/"
    assert run().exit_code == 0
    resources.store.put_new(f"{job_prefix(ended)}attempts/0/files/old2.bin", b"old")
    with resources.database.transaction() as transaction:
        transaction.execute(
            text("UPDATE jobs SET settled_at = NULL WHERE id = :id"), {"id": ended.id}
        )
    let_a_month_pass(resources)
    before, objects = rows(resources), stored(resources)
    shown = run("--dry-run")
    plan = json.loads(run("--dry-run", "--json").stdout)
    assert shown.exit_code == 0, shown.output
    assert (rows(resources), stored(resources)) == (before, objects)
    assert {entry["owner"] for entry in plan["removals"]} == {
        expired.id,
        ended.id,
        f"{prefix}/jobs/lost/",
    }
    for entry in plan["removals"]:
        assert entry["owner"] in shown.stdout
    done = run("--json")
    removed = objects - stored(resources)
    assert len(removed) == sum(entry["objects"] for entry in plan["removals"]) == 7
    assert json.loads(done.stdout)["orphaned_objects"] == 2
    assert len(resources.store.keys(job_prefix(kept))) == 4
    assert "Nothing would be removed" in run("--dry-run").stdout


def test_a_foreign_store_is_an_error_until_it_is_claimed(run: Run, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    retention.settle(resources)
    let_a_month_pass(resources)
    resources.store.replace(MARKER, b'{"deployment_id": "dep_another"}')
    for arguments in (("--dry-run",), ()):
        failed = run(*arguments)
        assert failed.exit_code == 1
        assert "dep_another" in failed.stderr
    assert len(resources.store.keys(job_prefix(job))) == 4
    assert run("--claim-store").exit_code == 0
    assert resources.store.keys(job_prefix(job)) == []


def test_missing_artifacts_are_named_and_exit_with_1(run: Run, resources: Resources) -> None:
    deployment.claim_store(resources)
    job = in_state(resources, State.SUCCEEDED)
    assert run("--check-artifacts").exit_code == 0
    resources.store.delete(resources.store.keys(job_prefix(job)))
    missing = run("--check-artifacts")
    assert missing.exit_code == 1
    assert f"{job.id}: artifacts are missing" in missing.stderr
    assert json.loads(run("--json").stdout)["missing_artifacts"] == [job.id]


def test_a_dry_run_takes_no_other_option(run: Run) -> None:
    assert run("--dry-run", "--claim-store").exit_code == 2
