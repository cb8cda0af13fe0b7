"""The overview of the service: jobs of the project, workers, and scopes of the key."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from app.domain.lifecycle import State
from app.domain.principal import Scope
from app.main import create_app
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import in_state, key_of, queued, running

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def test_unfinished_jobs_are_counted(client: TestClient, resources: Resources) -> None:
    queued(resources)
    queued(resources)
    running(resources)
    in_state(resources, State.SUCCEEDED)
    overview = client.get("/v1/service").json()
    assert sum(overview["jobs"].values()) == 3
    assert overview["jobs"]["running"] == 1
    assert (overview["busy_workers"], overview["workers"]) == (1, 1)


def test_idle_workers_are_counted_and_an_unreachable_broker_is_no_error(
    client: TestClient, resources: Resources, settings: Settings, unused_tcp_port: int
) -> None:
    assert client.get("/v1/service").json()["workers"] == 0
    resources.workers.announce("idle")
    assert client.get("/v1/service").json()["workers"] == 1
    away = {"broker_url": f"redis://127.0.0.1:{unused_tcp_port}/0"}
    with TestClient(create_app(settings.model_copy(update=away))) as alone:
        overview = alone.get("/v1/service")
    assert (overview.status_code, overview.json()["workers"]) == (200, None)


def test_jobs_of_another_project_are_not_counted(closed: TestClient, resources: Resources) -> None:
    queued(resources)
    reader = key_of(resources, Scope.READ, "other").secret
    overview = closed.get("/v1/service", headers={"authorization": f"Bearer {reader}"}).json()
    assert set(overview["jobs"].values()) == {0}
    assert (overview["project"], overview["scopes"]) == ("other", ["read"])


def test_a_key_is_required_but_not_for_the_dashboard(closed: TestClient) -> None:
    assert closed.get("/v1/service").status_code == 401
    assert closed.get("/").status_code == 200
    assert closed.get("/dashboard/main.js").status_code == 200
