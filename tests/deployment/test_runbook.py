"""The runbook for backups restores what was lost, and its drills end as they say."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import make_url, text

from app.adapters.database.migrate import upgrade
from app.adapters.database.tables import metadata
from app.domain.artifact import job_prefix
from app.domain.deployment import MARKER
from app.domain.job import Job, JobRecord
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.seaweed import EmbeddedS3
from app.main import create_app
from app.services import claims, deployment, jobs, layer_files
from app.services.resources import Resources, open_resources
from app.settings import Settings
from tests.app.builders import claim_job, in_state, queued, running, succeeded
from tests.app.databases import plain
from tests.app.environment import environment_of
from tests.deployment.runbook import SETTINGS, Runbook, command_blocks

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.broker,
    pytest.mark.object_store,
    pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed"),
]


@pytest.fixture
def deployed(
    postgres_server: EmbeddedPostgres,
    s3_server: EmbeddedS3,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Settings]:
    """Settings of a deployment with a database, its owner, and a bucket of its own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"runbook_{uuid.uuid4().hex}"
    url = f"postgresql+psycopg://{name}@/{name}?host={postgres_server.socket_directory}"
    changes = {"database_url": url, "artifact_store": f"s3://{name.replace('_', '-')}"}
    with psycopg.connect(plain(postgres_server.url), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        connection.execute(f"CREATE DATABASE {name} OWNER {name}")
        try:
            upgrade(Settings(database_url=url))
            yield settings.model_copy(update=changes)
        finally:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute(f"DROP ROLE {name}")


@pytest.fixture
def runbook(deployed: Settings, postgres_server: EmbeddedPostgres, tmp_path: Path) -> Runbook:
    shell = Runbook(
        directory=tmp_path,
        environment=environment_of(deployed),
        overrides={
            "PGHOST": str(postgres_server.socket_directory),
            "PGUSER": database_name(deployed),
            "PGDATABASE": database_name(deployed),
            "BACKUP": str(tmp_path / "backup"),
        },
    )
    shell.shell('rclone mkdir "$STORE"')
    return shell


@pytest.fixture
def opened(deployed: Settings, runbook: Runbook) -> Iterator[Resources]:
    resources = open_resources(deployed)
    deployment.claim_store(resources)
    yield resources
    resources.close()


def database_name(settings: Settings) -> str:
    return str(make_url(settings.database_url).database)


def rows(settings: Settings) -> dict[str, list[str]]:
    """Return every row of the database."""
    with psycopg.connect(plain(settings.database_url)) as connection:
        return {
            name: [
                str(row) for row in connection.execute(f"SELECT t::text FROM {name} t ORDER BY 1")
            ]
            for name in metadata.tables
        }


def objects(resources: Resources) -> dict[str, str]:
    """Return the hash of every object."""
    return {key: resources.store.sha256(key) for key in resources.store.keys("")}


def lose_database(server: EmbeddedPostgres, settings: Settings, *, anew: bool = False) -> None:
    name = database_name(settings)
    with psycopg.connect(plain(server.url), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        if anew:
            connection.execute(f"CREATE DATABASE {name} OWNER {name}")


def readiness(settings: Settings) -> tuple[int, dict[str, Any]]:
    with TestClient(create_app(settings)) as client:
        answer = client.get("/readyz")
    return answer.status_code, answer.json()["checks"]


def keep_layer(resources: Resources, job: Job, directory: Path) -> bytes:
    """Store a finished layer of the job's attempt, and return its content."""
    directory.mkdir()
    file = directory / "layer-00000.safetensors"
    file.write_bytes(b"a finished layer" * 500_000)  # more than one part
    layer_files.keep(resources, job, file)
    return file.read_bytes()


def test_the_settings_of_the_runbook_are_those_that_the_test_replaces() -> None:
    (settings,) = command_blocks()[SETTINGS]
    assert {"PGHOST", "PGUSER", "PGDATABASE", "BACKUP", "STORE"} <= set(
        settings.replace("=", " ").split()
    )
    assert all(command_blocks()[name] for name in ("Dump", "Restore", "Verify"))


def test_a_restored_deployment_has_the_rows_and_the_bytes_of_the_dump(
    runbook: Runbook,
    opened: Resources,
    deployed: Settings,
    postgres_server: EmbeddedPostgres,
    tmp_path: Path,
) -> None:
    done = [in_state(opened, State.SUCCEEDED) for _ in range(2)]
    interrupted = running(opened)
    layer = keep_layer(opened, interrupted, tmp_path / "layers")
    waiting = queued(opened)
    before, stored = rows(deployed), objects(opened)
    runbook.run("Dump")
    # What happens after the dump: a job ends, one is new, one is deleted.
    succeeded(opened, claim_job(opened, waiting.id))
    new = in_state(opened, State.SUCCEEDED)
    jobs.delete_job(opened, OPERATOR, done[0].id)
    damage(opened, done[1])
    later = set(opened.store.keys("")) - set(stored)
    lose_database(postgres_server, deployed)

    runbook.run("Restore")
    assert rows(deployed) == before
    present = objects(opened)
    assert {key: present[key] for key in stored} == stored
    assert set(present) - set(stored) == later
    verified = runbook.run("Verify")
    assert ": own" in verified
    assert f"jobs/{new.id}/" in verified
    assert "artifacts are missing" not in verified
    assert set(objects(opened)) == set(present)
    assert readiness(deployed)[0] == 200

    assert resumed_layer(opened, interrupted, tmp_path / "elsewhere") == layer
    shutil.rmtree(opened.work_dir)
    again = succeeded(opened, claim_job(opened, waiting.id))
    assert again.state is State.SUCCEEDED


def damage(resources: Resources, job: JobRecord) -> None:
    """Lose one object of the job and replace another by as many bytes."""
    keys = resources.store.keys(job_prefix(job))
    resources.store.delete(keys[:1])
    resources.store.replace(keys[1], bytes(resources.store.size(keys[1])))


def resumed_layer(resources: Resources, job: Job, directory: Path) -> bytes:
    """Let the job's lease expire, and return the layer from which the next attempt resumes."""
    with resources.database.transaction() as transaction:
        transaction.execute(
            text("UPDATE jobs SET lease_expires_at = now() WHERE id = :id"), {"id": job.id}
        )
    assert [each.id for each in claims.reap_expired(resources)] == [job.id]
    again = claim_job(resources, job.id)
    (name,) = layer_files.fetch(resources, again, directory)
    return (directory / name).read_bytes()


def test_without_a_dump_a_new_database_deletes_nothing_and_models_can_be_copied_out(
    runbook: Runbook,
    opened: Resources,
    deployed: Settings,
    postgres_server: EmbeddedPostgres,
    tmp_path: Path,
) -> None:
    heading = "Drill: the database is lost"
    job = in_state(opened, State.SUCCEEDED)
    files = jobs.list_artifacts(opened, OPERATOR, job.id)
    stored, former = objects(opened), opened.deployment.id()
    lose_database(postgres_server, deployed, anew=True)
    runbook.shell("intraslice migrate")
    status, checks = readiness(deployed)
    assert status == 503
    assert former in checks["deployment"]["problem"]
    assert former in runbook.run(heading, 0, fails=True)
    in_state(opened, State.SUCCEEDED)
    assert "match manifest.json" in runbook.run(heading, 1)
    for file in files:
        assert digest(tmp_path / "rescued" / file.name) == file.sha256
    runbook.run(heading, 2)
    assert readiness(deployed)[0] == 200
    present = objects(opened)
    assert {key: present[key] for key in stored if key != MARKER} == {
        key: value for key, value in stored.items() if key != MARKER
    }


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_lost_bucket_is_reported_replaced_and_restored(
    runbook: Runbook, opened: Resources, deployed: Settings
) -> None:
    heading = "Drill: the bucket is lost"
    job = in_state(opened, State.SUCCEEDED)
    stored = objects(opened)
    runbook.run("Dump")
    runbook.shell('rclone purge "$STORE"')
    assert "does not exist" in readiness(deployed)[1]["store"]["problem"]
    assert "does not exist" in runbook.shell("intraslice maintenance", fails=True)
    runbook.shell('rclone mkdir "$STORE"')
    status, checks = readiness(deployed)
    assert status == 503
    assert MARKER in checks["deployment"]["problem"]
    for block in (0, 1):
        assert f"{job.id}: artifacts are missing" in runbook.run(heading, block, fails=True)
    assert readiness(deployed)[0] == 200
    new = in_state(opened, State.SUCCEEDED)
    missing = {
        each.id: jobs.get_job(opened, OPERATOR, each.id).artifacts_missing for each in (job, new)
    }
    assert missing == {job.id: True, new.id: False}
    runbook.run(heading, 2)
    assert not jobs.get_job(opened, OPERATOR, job.id).artifacts_missing
    present = objects(opened)
    assert {key: present[key] for key in stored} == stored


def test_a_copy_for_a_test_system_leaves_the_original_alone(
    runbook: Runbook,
    opened: Resources,
    deployed: Settings,
    postgres_server: EmbeddedPostgres,
) -> None:
    heading = "A copy for a test system"
    job = in_state(opened, State.SUCCEEDED)
    runbook.run("Dump")
    stored = objects(opened)
    name = f"copy_{uuid.uuid4().hex}"
    with psycopg.connect(plain(postgres_server.url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER {database_name(deployed)}")
        try:
            url = deployed.database_url.replace(f"/{database_name(deployed)}?", f"/{name}?")
            copied = deployed.model_copy(
                update={"database_url": url, "artifact_store": f"{deployed.artifact_store}-copy"}
            )
            test_system = replace(
                runbook,
                environment=environment_of(copied),
                overrides=runbook.overrides | {"PGDATABASE": name},
            )
            test_system.run(heading)
            copy = open_resources(copied)
            try:
                assert copy.deployment.id() != opened.deployment.id()
                assert deployment.store_state(copy).problem is None
                jobs.delete_job(copy, OPERATOR, job.id)
                assert copy.store.keys("") == [MARKER]
            finally:
                copy.close()
            original = environment_of(deployed)["INTRASLICE_ARTIFACT_STORE"]
            mistaken = test_system.environment | {"INTRASLICE_ARTIFACT_STORE": original}
            *_, last = command_blocks()[heading][0].splitlines()
            output = replace(test_system, environment=mistaken).shell(last, fails=True)
            assert "belongs to deployment" in output
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert objects(opened) == stored
