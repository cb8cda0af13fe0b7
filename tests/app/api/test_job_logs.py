"""Log lines of a job over HTTP: JSON and plain text, levels, parts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.job import Job
from app.domain.job_log import LogLevel, NewLogLine
from app.services import job_log
from app.services.resources import Resources
from tests.app.builders import running

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LINES = (
    NewLogLine(time=NOW, level=LogLevel.INFO, event="step", fields={"message": "reading text"}),
    NewLogLine(time=NOW, level=LogLevel.WARNING, event="slow disk"),
    NewLogLine(
        time=NOW, level=LogLevel.ERROR, event="engine_crashed", fields={"exception": "a\nb"}
    ),
)


@pytest.fixture
def job(resources: Resources) -> Job:
    job = running(resources)
    job_log.record_lines(resources, job.lease, LINES)
    return job


def get(client: TestClient, job: Job, accept: str = "*/*", **query: Any) -> Any:
    """Return the response of a request for the lines of a job."""
    return client.get(f"/v1/jobs/{job.id}/logs", params=query, headers={"Accept": accept})


def test_lines_are_json_unless_text_is_preferred(client: TestClient, job: Job) -> None:
    answer = get(client, job)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept"
    body = answer.json()
    assert body["has_more"] is False
    assert body["data"][0] == {
        "sequence": 3,
        "time": "2026-03-01T12:00:00Z",
        "attempt": 1,
        "level": "info",
        "event": "step",
        "fields": {"message": "reading text"},
    }
    text = get(client, job, "text/plain")
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.text == (
        '2026-03-01T12:00:00.000Z INFO     attempt=1 step message="reading text"\n'
        "2026-03-01T12:00:00.000Z WARNING  attempt=1 slow disk\n"
        "2026-03-01T12:00:00.000Z ERROR    attempt=1 engine_crashed\n"
        "  exception:\n    a\n    b\n"
    )
    assert get(client, job, "text/html").status_code == 406


def test_parts_follow_each_other_by_the_link(client: TestClient, job: Job) -> None:
    events = []
    answer = get(client, job, limit=1, level="warning")
    while True:
        events += [line["event"] for line in answer.json()["data"]]
        if "next" not in answer.links:
            break
        answer = client.get(answer.links["next"]["url"])
    assert events == ["slow disk", "engine_crashed"]
    after = get(client, job, after=4).json()["data"]
    assert [line["sequence"] for line in after] == [5]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"level": "loud"}, "query:level"),
        ({"limit": 0}, "query:limit"),
        ({"after": -1}, "query:after"),
    ],
)
def test_wrong_parameters_are_rejected_by_name(
    client: TestClient, job: Job, query: dict[str, Any], pointer: str
) -> None:
    answer = get(client, job, **query)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_lines_of_an_unknown_job_are_not_found(client: TestClient) -> None:
    answer = client.get("/v1/jobs/job_00000000000000000000000000/logs")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
