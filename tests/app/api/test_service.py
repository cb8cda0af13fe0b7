"""The service at a glance: a project's own jobs, and who asks."""

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


def test_live_jobs_are_counted_and_ended_ones_not(client: TestClient, resources: Resources) -> None:
    queued(resources)
    queued(resources)
    running(resources)
    in_state(resources, State.SUCCEEDED)
    found = client.get("/v1/service").json()
    assert sum(found["jobs"].values()) == 3
    assert found["jobs"]["running"] == 1
    assert (found["busy_workers"], found["workers"]) == (1, 1)


def test_idle_workers_are_counted_and_a_broker_that_is_away_is_no_error(
    client: TestClient, resources: Resources, settings: Settings, unused_tcp_port: int
) -> None:
    assert client.get("/v1/service").json()["workers"] == 0
    resources.workers.announce("idle")
    assert client.get("/v1/service").json()["workers"] == 1
    away = {"broker_url": f"redis://127.0.0.1:{unused_tcp_port}/0"}
    with TestClient(create_app(settings.model_copy(update=away))) as alone:
        found = alone.get("/v1/service")
    assert (found.status_code, found.json()["workers"]) == (200, None)


def test_another_projects_jobs_are_not_counted(closed: TestClient, resources: Resources) -> None:
    queued(resources)
    reader = key_of(resources, Scope.READ, "other").secret
    found = closed.get("/v1/service", headers={"authorization": f"Bearer {reader}"}).json()
    assert set(found["jobs"].values()) == {0}
    assert (found["project"], found["scopes"]) == ("other", ["read"])


def test_without_a_key_it_says_nothing(closed: TestClient) -> None:
    assert closed.get("/v1/service").status_code == 401
    assert closed.get("/").status_code == 200
    assert closed.get("/dashboard/main.js").status_code == 200
