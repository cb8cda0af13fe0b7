"""Verbs, priorities, limits and filters of jobs over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.domain.artifact import job_prefix
from app.domain.job import JobError
from app.domain.lifecycle import TERMINAL, State
from app.domain.model_source import ModelSource
from app.services import claims
from app.services.resources import Resources
from tests.app.builders import BODY, claim_job, in_state, queued, running, succeeded

pytestmark = [pytest.mark.postgres, pytest.mark.broker]

# The state after each verb in each state; states that are left out respond with 409.
VERBS: dict[str, dict[State, State | None]] = {
    "cancel": {
        State.QUEUED: State.CANCELLED,
        State.RUNNING: State.CANCELLING,
        State.PAUSING: State.CANCELLING,
        State.PAUSED: State.CANCELLED,
        State.CANCELLING: State.CANCELLING,
        State.CANCELLED: State.CANCELLED,
    },
    "pause": {
        State.QUEUED: State.PAUSED,
        State.RUNNING: State.PAUSING,
        State.PAUSING: State.PAUSING,
        State.PAUSED: State.PAUSED,
    },
    "resume": {
        State.QUEUED: State.QUEUED,
        State.RUNNING: State.RUNNING,
        State.PAUSED: State.QUEUED,
    },
    "retry": {
        State.QUEUED: State.QUEUED,
        State.RUNNING: State.RUNNING,
        State.FAILED: State.QUEUED,
        State.CANCELLED: State.QUEUED,
    },
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("verb", list(VERBS))
def test_a_verb_does_what_the_state_allows(
    client: TestClient, resources: Resources, verb: str, state: State
) -> None:
    job = in_state(resources, state)
    answer = client.post(f"/v1/jobs/{job.id}/{verb}")
    expected = VERBS[verb].get(state)
    if expected is None:
        assert answer.status_code == 409
        assert answer.json()["code"] == "illegal_state"
        assert state in answer.json()["detail"]
    else:
        assert answer.status_code == 202
        assert answer.json()["state"] == expected
        # Idempotent: a second request returns the same and writes no second event.
        events = client.get(f"/v1/jobs/{job.id}/events").json()
        assert client.post(f"/v1/jobs/{job.id}/{verb}").json()["state"] == expected
        assert client.get(f"/v1/jobs/{job.id}/events").json() == events
    assert client.get(f"/v1/jobs/{job.id}").json()["state"] == (expected or state)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_on_an_unknown_job_is_not_found(client: TestClient, verb: str) -> None:
    assert client.post(f"/v1/jobs/nothing/{verb}").status_code == 404


def test_a_retried_job_starts_afresh(client: TestClient, resources: Resources) -> None:
    job = in_state(resources, State.FAILED)
    retried = client.post(f"/v1/jobs/{job.id}/retry").json()
    assert (retried["attempt"], retried["error"], retried["finished_at"]) == (0, None, None)
    claimed = claims.claim_next_job(resources, "worker-2")
    assert claimed is not None
    assert claimed.fencing_token > job.fencing_token
    assert succeeded(resources, claimed).state is State.SUCCEEDED


def test_a_resumed_job_has_an_attempt_left(client: TestClient, resources: Resources) -> None:
    job = running(resources)
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET attempt = max_attempts"))
    client.post(f"/v1/jobs/{job.id}/pause")
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 s'"))
    (reaped,) = claims.reap_expired(resources)
    assert (reaped.state, reaped.attempt) == (State.PAUSED, 3)
    client.post(f"/v1/jobs/{job.id}/resume")
    again = claims.claim_next_job(resources, "worker-2")
    assert again is not None
    assert again.attempt == 3


@pytest.mark.parametrize("state", list(State))
def test_only_ended_jobs_are_deleted(
    client: TestClient, resources: Resources, state: State
) -> None:
    job = in_state(resources, state)
    answer = client.delete(f"/v1/jobs/{job.id}")
    if state not in TERMINAL:
        assert (answer.status_code, answer.json()["code"]) == (409, "illegal_state")
        return
    assert (answer.status_code, answer.content) == (204, b"")
    assert resources.store.keys(job_prefix(job)) == []
    assert client.get(f"/v1/jobs/{job.id}").status_code == 404
    assert client.get(f"/v1/jobs/{job.id}/artifacts").status_code == 404
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 404


def test_limits_and_priority_are_shown_and_checked(client: TestClient) -> None:
    limits = {"priority": 9, "max_runtime_s": 3600, "max_pending_s": 60}
    job = client.post("/v1/jobs", json=BODY | limits).json()
    assert {name: job[name] for name in limits} == limits
    for name, value in {"priority": 10, "max_runtime_s": 0, "max_pending_s": -1}.items():
        rejected = client.post("/v1/jobs", json=BODY | {name: value})
        assert rejected.status_code == 422
        assert rejected.json()["errors"][0]["pointer"] == f"/{name}"


def age(resources: Resources, column: str) -> None:
    with resources.database.transaction() as transaction:
        transaction.execute(text(f"UPDATE jobs SET {column} = {column} - interval '1 hour'"))


def test_a_job_that_is_not_started_in_time_fails(client: TestClient, resources: Resources) -> None:
    patient, hasty = queued(resources), queued(resources, max_pending_s=60)
    assert claims.end_overdue(resources) == []
    age(resources, "queued_at")
    claims.end_overdue(resources)
    assert client.get(f"/v1/jobs/{patient.id}").json()["state"] == "queued"
    failed = client.get(f"/v1/jobs/{hasty.id}").json()
    assert (failed["state"], failed["error"]["code"]) == ("failed", "expired_in_queue")
    events = client.get(f"/v1/jobs/{hasty.id}/events").json()["data"]
    assert [event["type"] for event in events] == ["queued", "failed"]


def test_a_job_that_exceeds_its_runtime_fails_and_its_worker_loses_the_lease(
    client: TestClient, resources: Resources
) -> None:
    queued(resources, max_runtime_s=60)
    job = claims.claim_next_job(resources, "stuck")
    assert job is not None
    assert claims.end_overdue(resources) == []
    age(resources, "claimed_at")
    (ended,) = claims.end_overdue(resources)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == (State.FAILED, "timeout")
    assert not claims.holds_lease(resources, job.id, job.fencing_token)


def test_queue_and_pauses_are_not_work(client: TestClient, resources: Resources) -> None:
    """Two attempts of an hour each, with an hour in the queue and an hour of pause between."""
    job = queued(resources)

    def claimed() -> Any:
        return client.get(f"/v1/jobs/{job.id}").json()

    age(resources, "created_at")
    first = claim_job(resources, job.id)
    assert claimed()["worked_seconds"] == 0.0
    age(resources, "claimed_at")
    client.post(f"/v1/jobs/{job.id}/pause")
    claims.finish_pause(resources, first.lease)
    assert claimed()["worked_seconds"] == pytest.approx(3600.0, abs=60.0)
    age(resources, "started_at")
    client.post(f"/v1/jobs/{job.id}/resume")
    second = claim_job(resources, job.id)
    age(resources, "claimed_at")
    ended = claims.fail_job(resources, second.lease, JobError(code="numerical", message="NaN"))
    assert ended.worked_seconds == pytest.approx(7200.0, abs=60.0)
    client.post(f"/v1/jobs/{job.id}/retry")
    client.post(f"/v1/jobs/{job.id}/cancel")
    assert claimed()["worked_seconds"] == ended.worked_seconds


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "abc"),
        ({"state": "running"}, "c"),
        ({"state": ["running", "queued"]}, "abc"),
        ({"state": "failed"}, ""),
        ({"model": "allowed/model"}, "b"),
        ({"label.team": "search"}, "a"),
        ({"label.team": "search", "label.run": "1"}, "a"),
        ({"label.team": "search", "label.run": "2"}, ""),
        ({"created_after": "2020-01-01T00:00:00Z"}, "abc"),
        ({"created_before": "2020-01-01T00:00:00Z"}, ""),
    ],
)
def test_lists_are_filtered(
    client: TestClient, resources: Resources, query: dict[str, Any], expected: str
) -> None:
    ids = {
        "c": running(resources).id,
        "a": queued(resources, labels={"team": "search", "run": "1"}).id,
        "b": queued(resources, model=ModelSource(source="hub", ref="allowed/model")).id,
    }
    data = client.get("/v1/jobs", params=query).json()["data"]
    assert {job["id"] for job in data} == {ids[name] for name in expected}


@pytest.mark.parametrize(
    "query", [{"state": "nowhere"}, {"created_after": "yesterday"}, {"label.a": "\0"}]
)
def test_invalid_filters_are_rejected(client: TestClient, query: dict[str, str]) -> None:
    assert client.get("/v1/jobs", params=query).status_code == 422


def test_idempotency_keys_are_forgotten_after_a_day(
    client: TestClient, resources: Resources
) -> None:
    from app.services.jobs import forget_idempotency_keys

    headers = {"Idempotency-Key": "nightly"}
    first = client.post("/v1/jobs", json=BODY, headers=headers).json()
    assert forget_idempotency_keys(resources) == 0
    assert client.post("/v1/jobs", json=BODY, headers=headers).json()["id"] == first["id"]
    with resources.database.transaction() as transaction:
        late = text("UPDATE idempotency_keys SET created_at = now() - :age")
        transaction.execute(late, {"age": timedelta(hours=25)})
    assert forget_idempotency_keys(resources) == 1
    assert client.post("/v1/jobs", json=BODY, headers=headers).json()["id"] != first["id"]
