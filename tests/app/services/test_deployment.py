"""Nothing is deleted from a store that is not provably the deployment's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.adapters.queue import queue_name
from app.adapters.valkey import client_url
from app.domain.artifact import job_prefix
from app.domain.deployment import MARKER, StoreClaim, marker_owner
from app.domain.errors import StoreNotOwnedError
from app.domain.job import JobRecord
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.upload import UploadFile, UploadKind, UploadRequest, upload_prefix
from app.embedded.postgres import EmbeddedPostgres
from app.main import create_app
from app.services import deployment, jobs, outbox, publication, uploads
from app.services.resources import Resources, open_resources
from app.settings import Settings
from app.telemetry import metrics
from tests.app.builders import in_state, queued, running
from tests.app.databases import new_database, restore
from workers.periodic_tasks import DEPLOYMENT_TASKS, MACHINE_TASKS, MaintenanceThread

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


@pytest.fixture
def artifact_store(each_store: str) -> str:
    return each_store


@pytest.fixture
def second(
    postgres_server: EmbeddedPostgres, settings: Settings, tmp_path: Path
) -> Iterator[Resources]:
    """A deployment with an empty database of its own on the same store and broker."""
    with new_database(postgres_server) as url:
        changes = {
            "database_url": url,
            "data_dir": tmp_path / "second",
            "artifact_store": settings.store_url,
        }
        opened = open_resources(settings.model_copy(update=changes))
        yield opened
        opened.close()


def maintain(resources: Resources, days: int = 0) -> None:
    """Run every periodic task of a deployment after this many days."""
    with resources.database.transaction() as transaction:
        for statement in (
            "UPDATE jobs SET expires_at = expires_at - make_interval(days => :days)",
            "UPDATE uploads SET expires_at = expires_at - make_interval(days => :days)",
            "UPDATE orphans SET listed_at = listed_at - make_interval(days => :days)",
            "UPDATE turns SET taken_at = taken_at - make_interval(days => :days)",
        ):
            transaction.execute(text(statement), {"days": days})
    # Objects are young in a test; as young objects they would be spared for another reason.
    eager = {**vars(resources), "settings": resources.settings.model_copy(update=_EAGER)}
    MaintenanceThread(Resources(**eager), DEPLOYMENT_TASKS).run_tasks()


_EAGER = {"orphan_hours": 0, "orphan_check_seconds": 1e-9}


def everything(resources: Resources) -> set[str]:
    return set(resources.store.keys(""))


def succeeded_job(resources: Resources) -> JobRecord:
    job = in_state(resources, State.SUCCEEDED)
    assert isinstance(job, JobRecord)
    return job


def expiring_upload(resources: Resources) -> None:
    """Create an upload with a part that expires at the next maintenance."""
    file = UploadFile(name="a.txt", bytes=1, sha256="0" * 64)
    created = uploads.create_upload(
        resources, OPERATOR, UploadRequest(kind=UploadKind.TEXT, files=(file,))
    )
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE uploads SET expires_at = now() - interval '1 hour'"))
        prefix = transaction.scalar(text("SELECT store_prefix FROM uploads"))
    resources.store.put_new(f"{prefix}uploads/{created.id}/0/000000", b"x")


def test_the_first_maintenance_claims_the_store_once(resources: Resources) -> None:
    for _ in range(2):
        assert deployment.store_state(resources).problem is None
        maintain(resources)
        assert marker_owner(resources.store.read(MARKER)) == resources.deployment.id()
    assert deployment.store_state(resources).claim is StoreClaim.OWN


def test_a_second_deployment_on_the_store_deletes_nothing_and_says_so(
    resources: Resources, second: Resources
) -> None:
    for _ in range(7):
        succeeded_job(resources)
    maintain(resources)
    before = everything(resources)
    own = succeeded_job(second)
    expiring_upload(second)
    own_objects = everything(second) - before
    for days in (0, 1, 40):
        maintain(second, days)
    assert everything(resources) == before | own_objects
    with pytest.raises(StoreNotOwnedError, match=resources.deployment.id()):
        jobs.delete_job(second, OPERATOR, own.id)
    assert jobs.get_job(second, OPERATOR, own.id).expired_at is None
    assert metrics.STORE_OWNED._value.get() == 0
    with TestClient(create_app(second.settings)) as client:
        answer = client.get("/readyz")
    assert answer.status_code == 503
    problem = answer.json()["checks"]["deployment"]["problem"]
    for part in (resources.deployment.id(), second.deployment.id(), "--claim-store"):
        assert part in problem
    # The first goes on as before.
    maintain(resources)
    assert everything(resources) == before | own_objects


def test_deployments_keep_their_objects_below_prefixes_of_their_own(
    resources: Resources, second: Resources
) -> None:
    one, two = succeeded_job(resources), succeeded_job(second)
    assert job_prefix(one).startswith(f"{resources.deployment.id()}/jobs/")
    assert job_prefix(two).startswith(f"{second.deployment.id()}/jobs/")
    assert resources.deployment.id() != second.deployment.id()


def test_services_started_on_an_empty_database_before_the_restore_delete_nothing(
    resources: Resources, second: Resources, settings: Settings
) -> None:
    succeeded_job(resources)
    maintain(resources)
    before = everything(resources)
    maintain(second)
    maintain(second, days=2)
    assert everything(second) == before
    restore(settings.database_url, second.settings.database_url)
    assert deployment.store_state(second).claim is StoreClaim.OWN
    maintain(second, days=2)
    maintain(second, days=2)
    assert everything(second) == before


def test_a_database_restored_before_the_start_owns_its_store(
    resources: Resources, second: Resources, settings: Settings
) -> None:
    job = succeeded_job(resources)
    maintain(resources)
    restore(settings.database_url, second.settings.database_url)
    later = succeeded_job(resources)
    before, unknown = everything(resources), set(resources.store.keys(job_prefix(later)))
    # The restored database knows nothing of the later job: its files get a day before they go.
    for _ in range(3):
        maintain_honestly(second)
    assert everything(second) == before
    maintain_honestly(second, days=2)
    assert everything(second) == before, "objects that are younger than a day are kept"
    maintain(second, days=2)
    assert everything(second) == before - unknown
    jobs.delete_job(second, OPERATOR, job.id)
    assert everything(second) == {MARKER}


def maintain_honestly(resources: Resources, days: int = 0) -> None:
    """Run maintenance with the least age that settings allow."""
    with resources.database.transaction() as transaction:
        transaction.execute(
            text("UPDATE orphans SET listed_at = listed_at - make_interval(days => :days)"),
            {"days": days},
        )
        transaction.execute(text("DELETE FROM turns"))
    MaintenanceThread(resources, DEPLOYMENT_TASKS).run_tasks()


def test_a_database_whose_store_lost_its_marker_deletes_nothing_until_the_operator_claims_it(
    resources: Resources,
) -> None:
    job = succeeded_job(resources)
    maintain(resources)
    resources.store.delete([MARKER])
    objects = everything(resources)
    maintain(resources, days=40)
    assert everything(resources) == objects
    state = deployment.store_state(resources)
    assert (state.claim, MARKER in str(state.problem)) == (StoreClaim.LOST, True)
    with pytest.raises(StoreNotOwnedError):
        jobs.delete_job(resources, OPERATOR, job.id)
    assert deployment.take_over_store(resources).claim is StoreClaim.OWN
    jobs.delete_job(resources, OPERATOR, job.id)
    assert everything(resources) == {MARKER}


def test_a_store_that_was_handed_over_is_the_new_owners_only(
    resources: Resources, second: Resources
) -> None:
    succeeded_job(resources)
    maintain(resources)
    before = everything(resources)
    assert deployment.take_over_store(second).claim is StoreClaim.OWN
    assert deployment.store_state(resources).claim is StoreClaim.FOREIGN
    succeeded_job(second)
    mine = everything(second) - before
    for days in (0, 2, 2, 40):
        maintain(second, days)
        maintain(resources, days)
    # Expired artifacts of the new owner went; those of the former one stay.
    assert everything(second) == before
    assert mine


def test_a_damaged_marker_is_not_ours(resources: Resources) -> None:
    maintain(resources)
    for content in (b"", b"{}", b"[1]", b'{"deployment_id": 3}', b"\xff"):
        resources.store.replace(MARKER, content)
        assert deployment.store_state(resources).claim is StoreClaim.FOREIGN


def test_files_of_earlier_releases_expire_and_their_orphans_stay(resources: Resources) -> None:
    job = succeeded_job(resources)
    # As code before the deployment's id wrote them.
    former = f"jobs/{job.id}/"
    with resources.database.transaction() as transaction:
        transaction.execute(
            text("UPDATE artifacts SET key = :former || substr(key, :length)"),
            {"former": former, "length": len(job_prefix(job)) + 1},
        )
        transaction.execute(text("UPDATE jobs SET store_prefix = ''"))
    for key in resources.store.keys(job_prefix(job)):
        content = resources.store.read(key)
        resources.store.put_new(former + key.removeprefix(job_prefix(job)), content)
        resources.store.delete([key])
    resources.store.put_new("jobs/job_01J00000000000000000000000/x", b"whoever wrote this")
    maintain(resources)
    maintain(resources, days=2)
    assert len(resources.store.keys(former)) == 4
    maintain(resources, days=40)
    assert everything(resources) == {MARKER, "jobs/job_01J00000000000000000000000/x"}


def test_an_upload_names_the_prefix_of_its_parts(resources: Resources) -> None:
    expiring_upload(resources)
    with resources.database.transaction() as transaction:
        (record,) = uploads.uploads.due(transaction, None)
    assert upload_prefix(record) == f"{resources.deployment.id()}/uploads/{record.id}/"
    maintain(resources)
    assert everything(resources) == {MARKER}


def test_deployments_on_one_broker_have_queues_of_their_own(
    resources: Resources, second: Resources
) -> None:
    deployments = (resources, second)
    for present in deployments:
        queued(present)
        assert outbox.dispatch(present) == 1
    names = [queue_name(present.deployment.id()) for present in deployments]
    with redis.Redis.from_url(client_url(resources.settings.broker_url)) as client:
        assert [client.llen(name) for name in names] == [1, 1]


def test_deployments_with_one_data_directory_keep_each_others_work(
    resources: Resources, second: Resources
) -> None:
    shared = replace(
        second,
        settings=second.settings.model_copy(update={"data_dir": resources.settings.data_dir}),
    )
    busy = running(resources)
    work = (
        resources.work_dir / f"{busy.id}.{busy.fencing_token}",
        resources.work_dir / f"{busy.id}.layers",
        resources.uploads_dir / "upl_1",
        resources.shared_dir / "sweep_1",
    )
    for directory in work:
        directory.mkdir(parents=True)
    shared.deployment.read()
    for own in (shared.work_dir / "job_gone.1", shared.uploads_dir / "upl_gone"):
        own.mkdir(parents=True)
    MaintenanceThread(shared, MACHINE_TASKS).run_tasks()
    assert all(directory.is_dir() for directory in work)
    assert not (shared.work_dir / "job_gone.1").exists()
    assert not (shared.uploads_dir / "upl_gone").exists()


def test_files_of_a_reaped_job_stay_in_a_foreign_store(
    resources: Resources, second: Resources
) -> None:
    maintain(resources)
    job = running(second)
    key = f"{job_prefix(job)}attempts/{job.fencing_token}/files/a"
    second.store.put_new(key, b"x")
    with pytest.raises(StoreNotOwnedError):
        publication.discard_other_attempts(second, job)
    assert key in everything(second)


@pytest.mark.object_store
def test_a_bucket_that_does_not_exist_is_not_reported_as_one_that_lost_its_marker(
    resources: Resources,
) -> None:
    if resources.settings.store_url.startswith("file:"):
        pytest.skip("a directory is created")
    maintain(resources)
    missing = resources.settings.model_copy(update={"artifact_store": "s3://no-such-bucket/x"})
    with TestClient(create_app(missing)) as client:
        checks = client.get("/readyz").json()["checks"]
    assert "does not exist" in checks["store"]["problem"]
    assert checks["deployment"]["problem"] is None
