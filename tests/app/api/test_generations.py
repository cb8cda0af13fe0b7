"""The playground over HTTP: prompts, bounds, authorization, cancellation and removal."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import structlog
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.domain.errors import LeaseLostError
from app.domain.generation import PlaygroundModel
from app.domain.job import Job
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR, Scope
from app.main import create_app
from app.services import generation_claims, jobs, outbox, retention
from app.services.resources import Resources
from app.settings import Settings
from tests.app.api.test_metrics import values
from tests.app.builders import bearer, in_state, key_of
from tests.app.generating import PROMPT, answer, claimed, prompted

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


@pytest.fixture
def job(resources: Resources) -> Job:
    return in_state(resources, State.SUCCEEDED)


def send(client: TestClient, job: Job, **fields: Any) -> httpx.Response:
    response: httpx.Response = client.post(
        f"/v1/jobs/{job.id}/generate", json={"prompt": PROMPT, **fields}
    )
    return response


def rejected(response: httpx.Response) -> tuple[str, str]:
    assert response.status_code == 422, response.text
    (error,) = response.json()["errors"]
    return error["pointer"], error["code"]


def test_a_prompt_is_queued_answered_and_read(
    client: TestClient, resources: Resources, job: Job
) -> None:
    response = send(client, job, max_new_tokens=8)
    place = response.headers["location"]
    made = response.json()
    assert (response.status_code, place) == (202, f"/v1/jobs/{job.id}/generations/{made['id']}")
    assert (made["state"], made["models"], made["answers"]) == (
        "queued",
        ["dense", "compressed"],
        [],
    )
    assert (made["prompt"], made["temperature"], made["seed"]) == (PROMPT, None, 0)
    assert client.get(place).json() == made
    work = claimed(resources)
    for model in PlaygroundModel:
        generation_claims.add_answer(resources, work.generation.claim, answer(model, f"by {model}"))
        assert client.get(place).json()["state"] == "running"
    generation_claims.succeed(resources, work.generation.claim)
    done = client.get(place).json()
    assert done["state"] == "succeeded"
    assert [(each["model"], each["text"]) for each in done["answers"]] == [
        ("dense", "by dense"),
        ("compressed", "by compressed"),
    ]
    assert done["answers"][0]["tokens_per_second"] == 16.0
    assert done["started_at"] < done["finished_at"]
    assert client.get(f"/v1/jobs/{job.id}/generations").json()["data"] == [done]


def test_a_prompt_wakes_a_worker(resources: Resources, job: Job) -> None:
    outbox.dispatch(resources)
    prompted(resources, job)
    assert outbox.dispatch(resources) == 1


def test_the_playground_is_off_by_default_and_says_so(settings: Settings, job: Job) -> None:
    assert Settings.model_fields["playground"].default is False
    off = settings.model_copy(update={"playground": False})
    with TestClient(create_app(off)) as client:
        response = send(client, job)
        assert (response.status_code, response.json()["code"]) == (403, "playground_disabled")
        assert client.get("/v1/service").json()["playground"] is None
        assert client.post("/v1/jobs/job_0/generate", json={"prompt": "x"}).status_code == 404
    with TestClient(create_app(settings)) as client:
        limits = client.get("/v1/service").json()["playground"]
    assert limits == {
        "max_prompt_bytes": 8192,
        "max_new_tokens": 256,
        "max_seconds": 300,
        "max_queued": 4,
    }


def test_prompts_and_answers_are_bounded(client: TestClient, job: Job) -> None:
    assert rejected(send(client, job, prompt="é" * 4097)) == ("/prompt", "string_too_long")
    assert rejected(send(client, job, max_new_tokens=257)) == (
        "/max_new_tokens",
        "less_than_equal",
    )
    for prompt in ("", "a\0b", "\ud800"):
        content = f'{{"prompt": {prompt!a}}}'.replace("'", '"').replace("\\x00", "\\u0000")
        response = client.post(
            f"/v1/jobs/{job.id}/generate",
            content=content,
            headers={"content-type": "application/json"},
        )
        assert rejected(response)[0] == "/prompt"
    for field, value in (("max_new_tokens", 0), ("temperature", 0), ("seed", -1), ("models", [])):
        assert rejected(send(client, job, **{field: value}))[0] == f"/{field}"
    assert rejected(send(client, job, models=["dense", "dense"]))[0] == "/models"
    assert send(client, job, prompt="é" * 4096, max_new_tokens=256).status_code == 202


def test_only_a_succeeded_job_with_files_has_models_to_try(
    client: TestClient, resources: Resources, job: Job
) -> None:
    for state in (State.QUEUED, State.RUNNING, State.FAILED):
        response = send(client, in_state(resources, state))
        assert (response.status_code, response.json()["code"]) == (409, "illegal_state")
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET expired_at = now()"))
    assert send(client, job).json()["code"] == "artifacts_expired"


def test_an_original_that_is_not_allowed_any_more_is_not_read(settings: Settings, job: Job) -> None:
    elsewhere = settings.model_copy(update={"package_allow": ()})
    with TestClient(create_app(elsewhere)) as client:
        assert rejected(send(client, job)) == ("/models", "package_not_allowed")
        assert send(client, job, models=["compressed"]).status_code == 202


def test_the_prompts_of_a_key_that_have_not_ended_are_limited(
    closed: TestClient, resources: Resources, job: Job
) -> None:
    ours, other = (bearer(key_of(resources, Scope.WRITE)) for _ in range(2))
    path, body = f"/v1/jobs/{job.id}/generate", {"prompt": PROMPT}
    made = [closed.post(path, json=body, headers=ours) for _ in range(5)]
    assert [response.status_code for response in made] == [202] * 4 + [429]
    assert made[-1].json()["code"] == "too_many_generations"
    assert made[-1].headers["retry-after"] == "5"
    assert closed.post(path, json=body, headers=other).status_code == 202
    cancelled = closed.post(f"{made[0].headers['location']}/cancel", headers=ours)
    assert cancelled.status_code == 202
    assert closed.post(path, json=body, headers=ours).status_code == 202


def test_a_read_key_reads_but_neither_sends_nor_cancels(
    closed: TestClient, resources: Resources, job: Job
) -> None:
    reader = bearer(key_of(resources, Scope.READ))
    place = f"/v1/jobs/{job.id}/generations/{prompted(resources, job).id}"
    assert closed.get(place, headers=reader).json()["prompt"] == PROMPT
    for method, path in (
        ("POST", f"/v1/jobs/{job.id}/generate"),
        ("POST", f"{place}/cancel"),
        ("DELETE", place),
    ):
        response = closed.request(method, path, json={"prompt": "x"}, headers=reader)
        assert (response.status_code, response.json()["code"]) == (403, "scope_missing")


def test_a_generation_is_cancelled_at_once_and_then_deleted(
    client: TestClient, resources: Resources, job: Job
) -> None:
    place = send(client, job).headers["location"]
    work = claimed(resources)
    assert client.delete(place).json()["code"] == "illegal_state"
    for _ in range(2):
        cancelled = client.post(f"{place}/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    with pytest.raises(LeaseLostError):
        generation_claims.renew(resources, work.generation.claim, None)
    assert client.delete(place).status_code == 204
    missing = client.get(place)
    assert (missing.status_code, missing.json()["code"]) == (404, "generation_not_found")
    other = prompted(resources, job)
    generation_claims.succeed(resources, claimed(resources).generation.claim)
    ended = client.post(f"/v1/jobs/{job.id}/generations/{other.id}/cancel")
    assert (ended.status_code, ended.json()["code"]) == (409, "illegal_state")


def test_a_generation_is_found_below_its_own_job_only(
    client: TestClient, resources: Resources, job: Job
) -> None:
    made = prompted(resources, job)
    other = in_state(resources, State.SUCCEEDED)
    assert client.get(f"/v1/jobs/{other.id}/generations/{made.id}").status_code == 404
    assert client.get(f"/v1/jobs/{other.id}/generations").json()["data"] == []


def test_prompts_go_with_their_job_and_with_its_files(resources: Resources, job: Job) -> None:
    prompted(resources, job)
    expired = in_state(resources, State.SUCCEEDED)
    prompted(resources, expired)
    assert count(resources) == 2
    jobs.delete_job(resources, OPERATOR, job.id)
    assert count(resources) == 1
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET expires_at = now() - interval '1 s'"))
    assert retention.expire(resources) == 1
    assert count(resources) == 0


def count(resources: Resources) -> int:
    with resources.database.transaction() as transaction:
        number: int = transaction.execute(text("SELECT count(*) FROM generations")).scalar_one()
    return number


def test_a_prompt_is_in_no_log_and_not_in_the_audit_trail(
    closed: TestClient, resources: Resources, job: Job
) -> None:
    admin = bearer(key_of(resources, Scope.ADMIN))
    path = f"/v1/jobs/{job.id}/generate"
    with structlog.testing.capture_logs() as logs:
        made = closed.post(path, json={"prompt": PROMPT}, headers=admin)
        closed.post(path, json={"prompt": PROMPT, "max_new_tokens": 9999}, headers=admin)
        closed.post(f"{made.headers['location']}/cancel", headers=admin)
    assert logs
    audit = closed.get("/v1/audit", headers=admin).json()["data"]
    assert [(line["route"].rpartition("/")[2], line["status"]) for line in audit] == [
        ("cancel", 202),
        ("generate", 422),
        ("generate", 202),
    ]
    assert {line["object_id"] for line in audit} == {job.id}
    assert PROMPT not in str(logs) + str(audit)


def test_live_prompts_are_counted_by_state(
    client: TestClient, resources: Resources, job: Job
) -> None:
    for _ in range(2):
        prompted(resources, job)
    claimed(resources)
    live = values(client, "intraslice_generations_live")
    assert live == {("queued",): 1.0, ("running",): 1.0}
