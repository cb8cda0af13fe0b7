"""ETags and long polls."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from app.api.conditional import Representation
from app.domain.job import Job, Progress
from app.domain.lifecycle import TERMINAL, State
from app.services import claims
from app.services.resources import Resources
from intraslice_core.progress import Stage
from tests.app.builders import in_state, queued, running

# Shorter than the waits of a minute, which must end early.
pytestmark = [pytest.mark.postgres, pytest.mark.broker, pytest.mark.timeout(50)]


def advance(resources: Resources, job: Job, layer: int) -> None:
    progress = Progress(fraction=layer / 100, message=f"layer {layer}", layer=layer)
    claims.record_progress(resources, job.lease, Stage.COMPRESS, progress, log=False)


def test_a_job_is_sent_again_only_if_it_has_changed(
    client: TestClient, resources: Resources
) -> None:
    job = running(resources)
    url = f"/v1/jobs/{job.id}"
    etag = client.get(url).headers["etag"]
    assert etag.startswith('"')
    again = client.get(url, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    advance(resources, job, 1)
    changed = client.get(url, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.json()["progress"]["layer"] == 1
    assert changed.headers["etag"] != etag


@pytest.mark.parametrize(
    ("if_none_match", "matches"),
    [
        ("*", True),
        ('"{0}"', True),
        ('W/"{0}", "other"', True),
        ('"other","{0}"', True),
        ("", False),
        ("{0}", False),
        ('"other", W/"another"', False),
        (None, False),
    ],
)
@pytest.mark.parametrize("weak", [False, True])
def test_every_form_of_if_none_match_is_understood(
    if_none_match: str | None, matches: bool, weak: bool
) -> None:
    answer = Representation.of(Progress(fraction=0.5, message="half"), weak=weak)
    tag = answer.etag.removeprefix("W/").strip('"')
    assert answer.is_known(if_none_match and if_none_match.format(tag)) is matches


def test_a_list_is_sent_again_only_if_it_has_changed(
    client: TestClient, resources: Resources
) -> None:
    queued(resources)
    etag = client.get("/v1/jobs").headers["etag"]
    assert etag.startswith('W/"')
    assert client.get("/v1/jobs", headers={"If-None-Match": etag}).status_code == 304
    queued(resources)
    assert client.get("/v1/jobs", headers={"If-None-Match": etag}).status_code == 200


def test_a_long_poll_ends_with_the_change(client: TestClient, resources: Resources) -> None:
    job = queued(resources)
    url = f"/v1/jobs/{job.id}"
    condition = {"If-None-Match": client.get(url).headers["etag"]}
    with ThreadPoolExecutor() as threads:
        polls = [
            threads.submit(client.get, url, params={"wait": 60}, headers=condition)
            for _ in range(3)
        ]
        claims.claim_next_job(resources, "worker-1")
        answers = [poll.result() for poll in polls]
    assert {(answer.status_code, answer.json()["state"]) for answer in answers} == {
        (200, "running")
    }
    assert {answer.headers["etag"] for answer in answers} == {client.get(url).headers["etag"]}


def test_a_long_poll_without_an_etag_waits_for_any_change(
    client: TestClient, resources: Resources
) -> None:
    job = running(resources)
    with ThreadPoolExecutor() as threads:
        poll = threads.submit(client.get, f"/v1/jobs/{job.id}", params={"wait": 60})
        layer = 0
        while not poll.done():
            layer += 1
            advance(resources, job, layer)
    assert poll.result().json()["progress"]["layer"] > 0


def test_a_long_poll_without_a_change_ends_after_the_requested_wait(
    client: TestClient, resources: Resources
) -> None:
    url = f"/v1/jobs/{queued(resources).id}"
    etag = client.get(url).headers["etag"]
    waited = client.get(url, params={"wait": 0.05}, headers={"If-None-Match": etag})
    assert waited.status_code == 304
    assert client.get(url, params={"wait": 0.05}).headers["etag"] == etag


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_long_poll_of_an_ended_job_is_answered_at_once(
    client: TestClient, resources: Resources, state: State
) -> None:
    url = f"/v1/jobs/{in_state(resources, state).id}"
    first = client.get(url, params={"wait": 60})
    assert first.json()["state"] == state
    condition = {"If-None-Match": first.headers["etag"]}
    assert client.get(url, params={"wait": 60}, headers=condition).status_code == 304


def test_invalid_long_polls_are_rejected(client: TestClient) -> None:
    assert client.get("/v1/jobs/nothing", params={"wait": 60}).status_code == 404
    missing = "job_00000000000000000000000000"
    assert client.get(f"/v1/jobs/{missing}", params={"wait": 60}).status_code == 404
    rejected = client.get(f"/v1/jobs/{missing}", params={"wait": 61})
    assert rejected.json()["errors"][0]["pointer"] == "query:wait"
