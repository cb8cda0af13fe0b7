"""A succeeded job whose artifacts are gone says so, until they are back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.adapters.storage import ArtifactStore
from app.domain.artifact import job_prefix
from app.domain.errors import StoreUnavailableError
from app.domain.job import Job
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.services import artifact_check, jobs, retention
from app.services.resources import Resources
from tests.app.builders import in_state

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


@pytest.fixture
def artifact_store(each_store: str) -> str:
    return each_store


def find(resources: Resources, job: Job) -> Job:
    return jobs.get_job(resources, OPERATOR, job.id)


def weights(resources: Resources, job: Job) -> str:
    return next(k for k in resources.store.keys(job_prefix(job)) if k.endswith(".safetensors"))


def test_a_job_with_all_its_files_is_checked_once_a_day(resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    assert artifact_check.check_due_artifacts(resources).missing == 0
    assert not find(resources, job).artifacts_missing
    resources.store.delete([weights(resources, job)])
    assert artifact_check.check_due_artifacts(resources).missing == 0, "not due yet"
    let_pass(resources, 25)
    assert artifact_check.check_due_artifacts(resources).missing == 1


def let_pass(resources: Resources, hours: int) -> None:
    with resources.database.transaction() as transaction:
        transaction.execute(
            text(
                "UPDATE jobs SET artifacts_checked_at ="
                " artifacts_checked_at - make_interval(hours => :hours)"
            ),
            {"hours": hours},
        )


@pytest.mark.parametrize("damage", ["gone", "shorter"])
def test_missing_files_are_reported_and_the_state_stays(
    resources: Resources, client: TestClient, damage: str
) -> None:
    whole, damaged = (in_state(resources, State.SUCCEEDED) for _ in range(2))
    key = weights(resources, damaged)
    content = resources.store.read(key)
    resources.store.delete([key])
    if damage == "shorter":
        resources.store.put_new(key, content[:-1])
    answer = client.get(f"/v1/jobs/{damaged.id}")
    assert artifact_check.check_due_artifacts(resources).missing == 1
    changed = client.get(
        f"/v1/jobs/{damaged.id}", headers={"If-None-Match": answer.headers["etag"]}
    )
    assert (changed.status_code, changed.json()["state"]) == (200, "succeeded")
    assert changed.json()["artifacts_missing"] is True
    assert client.get(f"/v1/jobs/{whole.id}").json()["artifacts_missing"] is False
    assert "intraslice_jobs_missing_artifacts 1.0" in client.get("/metrics").text
    # The files came back, by a restored bucket for instance.
    resources.store.replace(key, content)
    let_pass(resources, 2)
    assert artifact_check.check_due_artifacts(resources).missing == 0
    assert not find(resources, damaged).artifacts_missing


def test_a_listing_that_fails_marks_no_job(resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)

    class FailingStore(ArtifactStore):
        def sizes(self, prefix: str) -> dict[str, int]:
            raise StoreUnavailableError(prefix)

    broken = replace(resources, store=FailingStore(resources.settings.store_url))
    with pytest.raises(StoreUnavailableError):
        artifact_check.check_due_artifacts(broken)
    assert not find(resources, job).artifacts_missing


def test_only_succeeded_jobs_with_files_are_checked(resources: Resources) -> None:
    ended = in_state(resources, State.FAILED)
    expired = in_state(resources, State.SUCCEEDED)
    retention.settle(resources)
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET expires_at = now() - interval '1 hour'"))
    retention.expire(resources)
    assert artifact_check.check_due_artifacts(resources, every=True).missing == 0
    assert not find(resources, ended).artifacts_missing
    assert not find(resources, expired).artifacts_missing


def test_a_job_whose_files_are_gone_stops_saying_so_when_it_expires(resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    resources.store.delete(resources.store.keys(job_prefix(job)))
    assert artifact_check.check_due_artifacts(resources).missing == 1
    retention.settle(resources)
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET expires_at = now() - interval '1 hour'"))
    retention.expire(resources)
    assert not find(resources, job).artifacts_missing


def test_all_jobs_are_checked_on_request_in_several_batches(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_check, "_BATCH", 2)
    made = [in_state(resources, State.SUCCEEDED) for _ in range(5)]
    artifact_check.check_due_artifacts(resources, every=True)
    for job in made[::2]:
        resources.store.delete([weights(resources, job)])
    assert artifact_check.check_due_artifacts(resources, every=True).missing == 3
