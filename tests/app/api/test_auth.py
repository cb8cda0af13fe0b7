"""Every endpoint but health, signed links and the dashboard requires a key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.domain.lifecycle import State
from app.main import create_app
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import BODY, in_state

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
KEY = "a-key-for-tests"
PATHS = [
    "/v1/service",
    "/v1/jobs",
    "/v1/jobs/x",
    "/nothing",
    "/v1/downloads/a/b",
]


@pytest.fixture
def closed(settings: Settings) -> Iterator[TestClient]:
    values = settings.model_dump() | {"auth": "on", "api_key": KEY}
    with TestClient(create_app(Settings(**values))) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", "Bearer schlüssel"]
)
def test_every_path_requires_the_key(closed: TestClient, path: str, header: str | None) -> None:
    headers = {"authorization": header.encode("utf-8")} if header else {}
    response = closed.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "unauthenticated"


def test_the_key_gives_access(closed: TestClient) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    assert closed.post("/v1/jobs", json=BODY, headers=headers).status_code == 202
    assert closed.get("/", headers=headers).status_code == 200


def test_health_needs_no_key(closed: TestClient) -> None:
    assert closed.get("/livez").json() == {"status": "ok"}
    ready = closed.get("/readyz")
    assert ready.status_code == 200
    assert {name: check["ok"] for name, check in ready.json()["checks"].items()} == {
        "database": True,
        "broker": True,
        "store": True,
        "deployment": True,
    }


def test_a_signed_link_needs_no_key(closed: TestClient, settings: Settings) -> None:
    resources: Resources = closed.app.state.resources  # type: ignore[attr-defined]
    job = in_state(resources, State.SUCCEEDED)
    assert closed.get(resources.signer.sign(job.id, "config.json", 60)).status_code == 200
    forged = closed.get(f"/v1/downloads/{job.id}/config.json?signature=0&expires=9999999999")
    assert forged.status_code == 403


def test_an_empty_operator_key_authenticates_nobody(settings: Settings) -> None:
    values = settings.model_dump() | {"auth": "on", "api_key": ""}
    with TestClient(create_app(Settings(**values))) as client:
        for header in ("Bearer ", "Bearer None"):
            assert client.get("/v1/jobs", headers={"authorization": header}).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_auth_off_needs_loopback(host: str) -> None:
    with pytest.raises(ValidationError, match="INTRASLICE_AUTH=off"):
        Settings(auth="off", host=host)


def test_the_root_path_serves_the_dashboard(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "IntraSlice" in response.text


def test_the_dashboard_needs_no_key_and_exposes_no_other_path(closed: TestClient) -> None:
    assert closed.get("/").status_code == 200
    assert closed.get("/dashboard/main.js").status_code == 200
    assert closed.get("/dashboard/../v1/jobs").status_code == 401
