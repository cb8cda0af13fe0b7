"""Files of finished layers are complete and available to the next attempt of the same job only."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.adapters.database import layer_files as rows
from app.domain.artifact import attempt_prefix, job_prefix
from app.domain.errors import LeaseLostError
from app.domain.job import Job, JobError
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import claims, jobs, layer_files, publication, retention
from app.services.resources import Resources
from tests.app.builders import running, succeeded
from tests.app.services.test_retention import age

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
NAMES = {"tokens.safetensors", "layer-00000.safetensors"}
LOST = JobError(code="child_crashed", message="it crashed", retryable=True)


@pytest.fixture
def artifact_store(each_store: str) -> str:
    return each_store


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return finish(tmp_path / "here")


def finish(directory: Path) -> Path:
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_bytes(name.encode() * 1000)
    return directory


def keep_all(resources: Resources, job: Job, directory: Path) -> None:
    for name in NAMES:
        layer_files.keep(resources, job, directory / name)


def held(resources: Resources, job: Job) -> set[str]:
    with resources.database.transaction() as transaction:
        return {file.name for file in rows.of_job(transaction, job.id)}


def next_attempt(resources: Resources, job: Job) -> Job:
    claims.requeue_job(resources, job.lease, None)
    again = claims.claim_next_job(resources, "worker-2")
    assert again is not None
    return again


def content(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_the_next_attempt_fetches_the_files_on_another_machine(
    resources: Resources, here: Path, tmp_path: Path
) -> None:
    job = running(resources)
    keep_all(resources, job, here)
    publication.discard_attempt(resources, job)
    again = next_attempt(resources, job)
    assert layer_files.fetch(resources, again, tmp_path / "elsewhere") == NAMES
    assert content(tmp_path / "elsewhere") == content(here)


def test_a_worker_without_the_lease_cannot_add_files(resources: Resources, here: Path) -> None:
    job = running(resources)
    next_attempt(resources, job)
    with pytest.raises(LeaseLostError):
        layer_files.keep(resources, job, here / "tokens.safetensors")
    assert held(resources, job) == set()
    publication.discard_attempt(resources, job)
    assert resources.store.keys(job_prefix(job)) == []


def test_the_first_file_of_a_name_is_not_replaced(resources: Resources, here: Path) -> None:
    job = running(resources)
    keep_all(resources, job, here)
    again = next_attempt(resources, job)
    keep_all(resources, again, here)
    with resources.database.transaction() as transaction:
        keys = [file.key for file in rows.of_job(transaction, job.id)]
    assert all(key.startswith(attempt_prefix(job, job.fencing_token)) for key in keys)


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_files_that_the_store_has_lost_are_dropped(
    resources: Resources, here: Path, tmp_path: Path, harm: str
) -> None:
    job = running(resources)
    keep_all(resources, job, here)
    key = next(k for k in resources.store.keys(job_prefix(job)) if "tokens" in k)
    resources.store.delete([key])
    if harm == "damaged":
        resources.store.put_new(key, b"something else")
    again = next_attempt(resources, job)
    left = NAMES - {"tokens.safetensors"}
    assert layer_files.fetch(resources, again, tmp_path / "elsewhere") == left
    assert set(content(tmp_path / "elsewhere")) == left
    assert held(resources, job) == left


def test_local_files_are_kept_unless_they_differ_from_the_store(
    resources: Resources, here: Path
) -> None:
    job = running(resources)
    layer_files.keep(resources, job, here / "tokens.safetensors")
    again = next_attempt(resources, job)
    assert layer_files.fetch(resources, again, here) == {"tokens.safetensors"}
    assert set(content(here)) == NAMES
    (here / "tokens.safetensors").write_bytes(b"of another run")
    assert layer_files.fetch(resources, again, here) == {"tokens.safetensors"}
    assert set(content(here)) == {"tokens.safetensors"}


def test_success_removes_the_files(resources: Resources, here: Path) -> None:
    job = running(resources)
    keep_all(resources, job, here)
    done = succeeded(resources, job)
    assert held(resources, job) == set()
    publication.discard_other_attempts(resources, done)
    published = {file.key for file in jobs.list_artifacts(resources, OPERATOR, job.id)}
    assert set(resources.store.keys(job_prefix(job))) == published


def test_a_retry_resumes_from_the_files_until_they_expire(
    resources: Resources, here: Path, tmp_path: Path
) -> None:
    job = running(resources)
    keep_all(resources, job, here)
    failed = claims.fail_job(resources, job.lease, LOST)
    publication.discard_other_attempts(resources, failed)
    retention.settle(resources)
    assert held(resources, job) == NAMES
    jobs.retry_job(resources, OPERATOR, job.id)
    again = claims.claim_next_job(resources, "worker-2")
    assert again is not None
    assert layer_files.fetch(resources, again, tmp_path / "elsewhere") == NAMES
    claims.fail_job(resources, again.lease, LOST)
    retention.settle(resources)
    age(resources, 31)
    retention.expire(resources)
    assert held(resources, job) == set()
    assert resources.store.keys(job_prefix(job)) == []


def test_deleting_the_job_removes_the_files(resources: Resources, here: Path) -> None:
    job = running(resources)
    keep_all(resources, job, here)
    assert claims.fail_job(resources, job.lease, LOST).state is State.FAILED
    jobs.delete_job(resources, OPERATOR, job.id)
    assert held(resources, job) == set()
    assert resources.store.keys(job_prefix(job)) == []


def test_the_lease_of_another_owner_is_rejected(resources: Resources, here: Path) -> None:
    job = running(resources)
    with pytest.raises(LeaseLostError):
        layer_files.keep(
            resources,
            job.model_copy(update={"lease_owner": "another"}),
            here / "tokens.safetensors",
        )
