"""Pins and expiry of artifacts over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.domain.lifecycle import State
from app.services import retention
from app.services.resources import Resources
from tests.app.api.downloading import fetch
from tests.app.builders import in_state


@pytest.fixture
def artifact_store(each_store: str) -> str:
    return each_store


def pass_time(resources: Resources) -> None:
    """Move every expiry date into the past."""
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET expires_at = now() - interval '1 second'"))


def shown(client: TestClient, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return job


def test_expired_artifacts_are_removed_and_the_job_has_the_expiry_date(
    client: TestClient, resources: Resources
) -> None:
    job_id = in_state(resources, State.SUCCEEDED).id
    links = [file["url"] for file in client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]]
    assert fetch(client, links[0]).status_code == 200
    retention.settle(resources)
    assert shown(client, job_id)["expires_at"] is not None
    pass_time(resources)
    assert retention.expire(resources) == 1
    job = shown(client, job_id)
    assert job["state"] == "succeeded"
    assert job["result"] is not None
    assert job["expired_at"] is not None
    assert job["expires_at"] is None
    assert client.get(f"/v1/jobs/{job_id}/artifacts").json() == {"data": [], "archive": None}
    assert client.get(f"/v1/jobs/{job_id}/report").status_code == 200
    gone = client.get(links[0])
    assert (gone.status_code, gone.json()["code"]) == (410, "artifacts_expired")
    assert client.post(f"/v1/jobs/{job_id}/pin").status_code == 410


def test_pinned_jobs_keep_their_artifacts(client: TestClient, resources: Resources) -> None:
    job_id = in_state(resources, State.SUCCEEDED).id
    retention.settle(resources)
    for _ in range(2):
        pinned = client.post(f"/v1/jobs/{job_id}/pin")
        assert pinned.status_code == 200
        assert (pinned.json()["pinned"], pinned.json()["expires_at"]) == (True, None)
    pass_time(resources)
    assert retention.expire(resources) == 0
    assert client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"] != []
    for _ in range(2):
        unpinned = client.post(f"/v1/jobs/{job_id}/unpin").json()
        assert unpinned["pinned"] is False
    assert unpinned["expires_at"] > unpinned["finished_at"]


def test_a_running_job_can_be_pinned_before_it_ends(
    client: TestClient, resources: Resources
) -> None:
    job = in_state(resources, State.CANCELLED)
    fresh = in_state(resources, State.QUEUED)
    assert client.post(f"/v1/jobs/{fresh.id}/pin").json()["pinned"] is True
    assert client.post(f"/v1/jobs/{job.id}/pin").json()["expires_at"] is None
    retention.settle(resources)
    assert shown(client, job.id)["expires_at"] is None


def test_unknown_jobs_cannot_be_pinned(client: TestClient) -> None:
    for name in ("nothing", "job_01J00000000000000000000000"):
        assert client.post(f"/v1/jobs/{name}/pin").status_code == 404
