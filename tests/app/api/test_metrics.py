"""GET /metrics: access and values."""

from __future__ import annotations

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app.domain.lifecycle import TERMINAL, State
from app.main import create_app
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import in_state, queued

KEY = "a-key-for-tests"


def values(client: TestClient, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a name by the values of their labels."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.name == name
    }


def test_metrics_require_a_key_unless_they_are_open(settings: Settings) -> None:
    closed = settings.model_copy(update={"auth": "on", "api_key": None})
    with TestClient(create_app(closed)) as client:
        assert client.get("/metrics").status_code == 401
    opened = closed.model_copy(update={"metrics_open": True})
    with TestClient(create_app(opened)) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/jobs").status_code == 401


def test_requests_are_counted_by_route_template_and_not_by_path(client: TestClient) -> None:
    name = "intraslice_http_request_seconds_count"
    labels = ("GET", "/v1/jobs/{job_id}", "404")
    before = values(client, name).get(labels, 0)
    client.get("/v1/jobs/one")
    client.get("/v1/jobs/another")
    client.request("BREW", "/nowhere/at/all")
    after = values(client, name)
    assert after[labels] == before + 2
    assert {route for _method, route, _status in after} >= {"/metrics", "other"}
    assert not any("nowhere" in part for sample_labels in after for part in sample_labels)
    assert ("other", "other", "404") in after or ("other", "other", "405") in after


def test_the_backlog_is_read_from_the_database(client: TestClient, resources: Resources) -> None:
    queued(resources)
    for state in State:
        in_state(resources, state)
    jobs = values(client, "intraslice_jobs")
    assert jobs[("queued",)] == 2
    assert jobs[("running",)] == jobs[("cancelling",)] == 1
    assert set(jobs) == {(state,) for state in State if state not in TERMINAL}
    assert values(client, "intraslice_outbox_messages")[()] >= 2
    assert values(client, "intraslice_outbox_oldest_seconds")[()] > 0
    assert values(client, "intraslice_database_up") == {(): 1.0}


def test_without_a_database_the_other_metrics_are_reported(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql+psycopg://u@localhost:1/none"})
    with TestClient(create_app(away)) as client:
        assert values(client, "intraslice_database_up") == {(): 0.0}
        assert values(client, "intraslice_jobs") == {}
        assert values(client, "intraslice_http_request_seconds_count")
