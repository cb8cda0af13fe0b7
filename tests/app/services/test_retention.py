"""The store holds only owned objects, wherever maintenance was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from app.adapters.database import retention as rows
from app.adapters.storage import ArtifactStore
from app.domain.artifact import attempt_prefix, job_prefix
from app.domain.errors import StoreUnavailableError
from app.domain.job import Job, Progress
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import claims, jobs, retention
from app.services.resources import Resources
from intraslice_core.progress import Stage
from tests.app.builders import in_state, running


@pytest.fixture
def artifact_store(each_store: str) -> str:
    return each_store


def put(resources: Resources, key: str) -> str:
    resources.store.put_new(key, b"left behind")
    return key


def age(resources: Resources, days: int) -> None:
    """Let this many days pass for every job."""
    with resources.database.transaction() as transaction:
        transaction.execute(
            text("UPDATE jobs SET expires_at = expires_at - make_interval(days => :days)"),
            {"days": days},
        )


def expire_everything(resources: Resources) -> None:
    retention.settle(resources)
    age(resources, 31)
    retention.expire(resources)


def find(resources: Resources, job: Job) -> Job:
    return jobs.get_job(resources, OPERATOR, job.id)


def test_settling_removes_old_attempts_and_keeps_published_files(resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    published = set(resources.store.keys(job_prefix(job)))
    put(resources, attempt_prefix(job, 0) + "files/model.safetensors")
    assert retention.settle(resources) == 1
    assert set(resources.store.keys(job_prefix(job))) == published
    assert retention.settle(resources) == 0


def test_settling_keeps_files_of_running_jobs_and_later_attempts(resources: Resources) -> None:
    busy = running(resources)
    mine = put(resources, attempt_prefix(busy, busy.fencing_token) + "files/a")
    ended = in_state(resources, State.FAILED)
    later = put(resources, attempt_prefix(ended, ended.fencing_token + 1) + "files/a")
    retention.settle(resources)
    assert resources.store.keys(job_prefix(busy)) == [mine]
    assert resources.store.keys(job_prefix(ended)) == [later]


def test_artifacts_are_removed_when_they_expire(resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    retention.settle(resources)
    age(resources, 29)
    assert retention.expire(resources) == 0
    assert find(resources, job).expired_at is None
    age(resources, 2)
    assert retention.expire(resources) == 1
    assert resources.store.keys(job_prefix(job)) == []
    assert find(resources, job).expired_at is not None
    assert retention.expire(resources) == 0


def test_zero_retention_days_keep_artifacts_for_ever(resources: Resources) -> None:
    unlimited = resources.settings.model_copy(update={"retention_days": 0})
    resources = replace(resources, settings=unlimited)
    job = in_state(resources, State.SUCCEEDED)
    expire_everything(resources)
    assert find(resources, job).expires_at is None
    assert jobs.list_artifacts(resources, OPERATOR, job.id) != []


class BrokenStore(ArtifactStore):
    """A store that fails at a chosen call."""

    def __init__(self, url: str, fails: str) -> None:
        super().__init__(url)
        self.fails = fails

    def keys(self, prefix: str) -> list[str]:
        if self.fails == "keys":
            raise StoreUnavailableError
        return super().keys(prefix)

    def delete(self, keys: list[str]) -> None:
        if self.fails == "delete":
            super().delete(keys[:1])
            raise StoreUnavailableError
        super().delete(keys)


@pytest.mark.parametrize("fails", ["keys", "delete"])
def test_an_interrupted_expiry_is_completed_by_the_next(resources: Resources, fails: str) -> None:
    job = in_state(resources, State.SUCCEEDED)
    retention.settle(resources)
    age(resources, 31)
    broken = replace(resources, store=BrokenStore(resources.settings.store_url, fails))
    with pytest.raises(StoreUnavailableError):
        retention.expire(broken)
    assert jobs.list_artifacts(resources, OPERATOR, job.id) == []
    assert retention.expire(resources) == 1
    assert resources.store.keys(job_prefix(job)) == []
    assert find(resources, job).expires_at is None


def test_an_expiry_interrupted_after_the_objects_were_removed_is_completed(
    resources: Resources,
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    retention.settle(resources)
    age(resources, 31)
    with resources.database.transaction() as transaction:
        assert [due.id for due in rows.expire_due(transaction, 10)] == [job.id]
    first = find(resources, job).expired_at
    resources.store.delete(resources.store.keys(job_prefix(job)))
    assert retention.expire(resources) == 1
    assert find(resources, job).expired_at == first


def test_the_log_of_an_expired_job_keeps_its_state_changes(resources: Resources) -> None:
    job = running(resources)
    progress = Progress(fraction=0.5, message="half")
    claims.record_progress(resources, job.lease, Stage.COMPRESS, progress, log=True)
    claims.requeue_job(resources, job.lease, None)
    jobs.cancel_job(resources, OPERATOR, job.id)
    expire_everything(resources)
    kinds = [
        event.type
        for event in jobs.list_events(resources, OPERATOR, job.id, after=0, limit=100).data
    ]
    assert kinds == ["queued", "started", "requeued", "cancelled"]


def test_a_bucket_prefix_lists_like_a_directory(tmp_path: Path) -> None:
    for url in (tmp_path.as_uri(), "memory:///"):
        store = ArtifactStore(url)
        for key in ("jobs/a/x", "jobs/a/y/z", "jobs/b/x", "other/c/x"):
            store.put_new(key, b"")
        assert sorted(store.directories("jobs/")) == ["jobs/a/", "jobs/b/"]
