"""Changes of a job's name and labels."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.job import MOST_LABELS
from app.domain.lifecycle import State
from app.domain.principal import Scope
from app.services.resources import Resources
from tests.app.builders import in_state, queued
from tests.app.tenants import Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def test_a_job_is_renamed_and_labelled_and_other_labels_stay(
    client: TestClient, resources: Resources
) -> None:
    job = queued(resources, labels={"team": "search", "draft": "yes"})
    changes = {"name": " nightly ", "labels": {"draft": None, "stage": "1"}}
    response = client.patch(f"/v1/jobs/{job.id}", json=changes)
    assert response.status_code == 200
    labels = {"team": "search", "name": "nightly", "stage": "1"}
    assert response.json()["labels"] == labels
    read = client.get(f"/v1/jobs/{job.id}")
    assert read.json()["labels"] == labels
    assert response.headers["etag"] == read.headers["etag"]
    listed = client.get("/v1/jobs", params={"label.stage": "1"}).json()["data"]
    assert [entry["id"] for entry in listed] == [job.id]
    again = client.patch(f"/v1/jobs/{job.id}", json=changes)
    assert again.json() == response.json()
    unnamed = client.patch(f"/v1/jobs/{job.id}", json={"name": None})
    assert "name" not in unnamed.json()["labels"]


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED, State.SUCCEEDED, State.FAILED])
def test_a_change_of_labels_changes_no_state(
    client: TestClient, resources: Resources, state: State
) -> None:
    job = in_state(resources, state)
    edited = client.patch(f"/v1/jobs/{job.id}", json={"name": "renamed"}).json()
    assert (edited["state"], edited["labels"]) == (state, {"name": "renamed"})


def test_a_job_that_changed_meanwhile_is_not_edited(
    client: TestClient, resources: Resources
) -> None:
    job = queued(resources)
    url = f"/v1/jobs/{job.id}"
    etag = client.get(url).headers["etag"]
    for if_match in ('"other"', f"W/{etag}"):
        rejected = client.patch(url, json={"name": "a"}, headers={"If-Match": if_match})
        assert (rejected.status_code, rejected.json()["code"]) == (412, "precondition_failed")
    first = client.patch(url, json={"name": "a"}, headers={"If-Match": f'"other", {etag}'})
    assert first.status_code == 200
    late = client.patch(url, json={"name": "b"}, headers={"If-Match": etag})
    assert late.status_code == 412
    assert client.get(url).json()["labels"] == {"name": "a"}
    assert client.patch(url, json={"name": "c"}, headers={"If-Match": "*"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "", "value_error"),
        ({"name": "  "}, "/name", "string_too_short"),
        ({"name": "x" * 257}, "/name", "string_too_long"),
        ({"name": "two\nlines"}, "/name", "string_pattern_mismatch"),
        ({"name": "a", "labels": {"name": "b"}}, "", "value_error"),
        ({"labels": {"a": "x" * 257}}, "/labels/a", "string_too_long"),
        ({"labels": {"a": 1}}, "/labels/a", "string_type"),
        ({"labels": {"a": "\0"}}, "/labels", "value_error"),
        ({"state": "cancelled"}, "/state", "extra_forbidden"),
        (
            {"labels": {f"key-{index}": "" for index in range(MOST_LABELS + 1)}},
            "/labels",
            "too_long",
        ),
    ],
)
def test_changes_that_are_not_possible_name_their_field(
    client: TestClient, resources: Resources, body: dict[str, Any], pointer: str, code: str
) -> None:
    job = queued(resources)
    response = client.patch(f"/v1/jobs/{job.id}", json=body)
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert (problem["pointer"], problem["code"]) == (pointer, code)
    assert client.get(f"/v1/jobs/{job.id}").json()["labels"] == {}


def test_edits_are_in_the_audit_log_and_need_the_scope_to_write(closed: TestClient) -> None:
    tenant = Tenant(closed, "search")
    job = queued(tenant.resources)
    url = f"/v1/jobs/{job.id}"
    rejected = closed.patch(url, json={"name": "a"}, headers=tenant.headers(Scope.READ))
    assert rejected.status_code == 403
    other = closed.patch(url, json={"name": "a"}, headers=tenant.headers(Scope.WRITE))
    assert other.status_code == 404, "the job is another project's"
    lines = closed.get("/v1/audit", headers=tenant.headers()).json()["data"]
    routes = [(line["method"], line["route"], line["status"]) for line in lines]
    assert routes == [("PATCH", "/v1/jobs/{job_id}", 404), ("PATCH", "/v1/jobs/{job_id}", 403)]
