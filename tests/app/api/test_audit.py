"""The audit log has one line per call that changes something, and no secrets."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import structlog
from fastapi.testclient import TestClient

from app.api.audit_trail import UNKNOWN_ROUTE
from app.domain.principal import Scope
from app.main import create_app
from app.services.audit import forget_old
from app.services.keys import revoke_key
from app.settings import Settings
from tests.app.builders import BODY, bearer, key_of
from tests.app.tenants import Tenant
from tests.conftest import OPERATOR_KEY

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
OPERATOR_HEADERS = {"authorization": f"Bearer {OPERATOR_KEY}"}


@pytest.fixture
def tenant(closed: TestClient) -> Tenant:
    return Tenant(closed, "search")


def lines(tenant: Tenant) -> list[dict[str, Any]]:
    """Return the lines of the log, newest first."""
    data: list[dict[str, Any]] = tenant.client.get("/v1/audit", headers=tenant.headers()).json()[
        "data"
    ]
    return data


def test_a_change_is_logged_with_key_object_and_status(tenant: Tenant) -> None:
    headers = tenant.headers(Scope.WRITE) | {"x-request-id": "mine-1"}
    job = tenant.client.post("/v1/jobs", json=BODY, headers=headers).json()
    cancelled = tenant.client.post(f"{job['urls']['self']}/cancel", headers=headers)
    assert cancelled.status_code == 202
    second, first = lines(tenant)
    for line, route in ((first, "/v1/jobs"), (second, "/v1/jobs/{job_id}/cancel")):
        assert line["object_id"] == job["id"]
        assert line["key"] == tenant.key(Scope.WRITE).id
        assert (line["method"], line["route"], line["status"]) == ("POST", route, 202)
        assert (line["project"], line["request_id"]) == ("search", "mine-1")
    assert first["created_at"] <= second["created_at"]


def test_reads_are_not_logged(tenant: Tenant) -> None:
    assert tenant.client.get("/v1/jobs", headers=tenant.headers()).status_code == 200
    assert lines(tenant) == []


def test_estimates_are_logged_only_if_the_key_may_not_make_them(tenant: Tenant) -> None:
    dead = key_of(tenant.resources, Scope.WRITE, "search")
    revoke_key(tenant.resources, tenant.principal, dead.id)
    statuses = [
        tenant.client.post("/v1/jobs:validate", json=body, headers=headers).status_code
        for body, headers in (
            (BODY, tenant.headers()),
            ({}, tenant.headers()),
            (BODY, bearer(dead)),
        )
    ]
    assert statuses == [200, 422, 401]
    assert [(line["route"], line["status"]) for line in lines(tenant)] == [
        ("/v1/jobs:validate", 401)
    ]


def test_rejected_requests_are_logged_if_their_key_is_identified(tenant: Tenant) -> None:
    client, absent = tenant.client, "job_" + "0" * 26
    client.post("/v1/jobs", json=BODY, headers=tenant.headers(Scope.READ))
    client.post(f"/v1/jobs/{absent}/cancel", headers=tenant.headers(Scope.WRITE))
    dead = key_of(tenant.resources, Scope.WRITE, "search")
    revoke_key(tenant.resources, tenant.principal, dead.id)
    client.post("/v1/jobs", json=BODY, headers=bearer(dead))
    client.post("/v1/jobs", content=b"x" * 2_000_000, headers=tenant.headers(Scope.WRITE))
    client.post("/v1/jobs", json={}, headers=tenant.headers(Scope.WRITE))
    client.post("/v1/jobs", json=BODY)
    client.post("/v1/jobs", json=BODY, headers={"authorization": "Bearer wrong"})
    logged = [(line["status"], line["object_id"]) for line in reversed(lines(tenant))]
    assert logged == [(403, None), (404, absent), (401, None), (413, None), (422, None)]
    assert lines(tenant)[2]["key"] == dead.id


def test_an_unexpected_error_is_logged(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("app.services.jobs.create_job", broken)
    response = tenant.client.post("/v1/jobs", json=BODY, headers=tenant.headers())
    assert response.status_code == 500
    assert [line["status"] for line in lines(tenant)] == [500]


def test_paths_and_bodies_are_never_stored(tenant: Tenant, settings: Settings) -> None:
    secret = tenant.key(Scope.ADMIN).secret
    client, headers = tenant.client, tenant.headers()
    client.delete(f"/v1/keys/{secret}", headers=headers)
    client.post(f"/v1/nothing/{secret}?key={secret}", headers=headers)
    client.post("/v1/jobs", json={"labels": {"a": secret}}, headers=headers)
    assert [line["route"] for line in lines(tenant)] == [
        "/v1/jobs",
        UNKNOWN_ROUTE,
        "/v1/keys/{key_id}",
    ]
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        rows = connection.execute("SELECT * FROM audit").fetchall()
    assert secret not in str(rows)


def test_only_administrators_of_the_project_read_its_log(tenant: Tenant) -> None:
    tenant.client.post("/v1/jobs", json=BODY, headers=tenant.headers(Scope.WRITE))
    for scope in (Scope.READ, Scope.WRITE):
        rejected = tenant.client.get("/v1/audit", headers=tenant.headers(scope))
        assert rejected.status_code == 403
    assert tenant.client.get("/v1/audit", headers=OPERATOR_HEADERS).json()["data"] == []
    chosen = {"project": "search"}
    seen = tenant.client.get("/v1/audit", params=chosen, headers=OPERATOR_HEADERS).json()["data"]
    assert len(seen) == 1


def test_pages_of_the_log_hold_every_line_once(tenant: Tenant) -> None:
    for _ in range(3):
        tenant.client.post("/v1/nothing", headers=tenant.headers())
    query: dict[str, Any] = {"limit": 2}
    first = tenant.client.get("/v1/audit", params=query, headers=tenant.headers()).json()
    query["after"] = first["next_cursor"]
    second = tenant.client.get("/v1/audit", params=query, headers=tenant.headers()).json()
    ids = [line["id"] for line in first["data"] + second["data"]]
    assert len(ids) == 3
    assert ids == sorted(ids, reverse=True)
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_a_failed_write_of_the_log_is_an_error_entry_and_changes_no_response(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("app.adapters.database.audit.append", broken)
    with structlog.testing.capture_logs() as logs:
        response = tenant.client.post("/v1/jobs", json=BODY, headers=tenant.headers())
    assert response.status_code == 202
    (lost,) = [line for line in logs if line["event"] == "audit_lost"]
    assert lost["log_level"] == "error"
    assert (lost["route"], lost["status"]) == ("/v1/jobs", 202)
    assert lost["object_id"] == response.json()["id"]


def test_without_authentication_the_operator_is_logged(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        client.post("/v1/jobs", json=BODY)
        (line,) = client.get("/v1/audit").json()["data"]
    assert (line["key"], line["project"], line["status"]) == (None, "default", 202)


def test_old_lines_are_removed_and_recent_ones_kept(tenant: Tenant, settings: Settings) -> None:
    for _ in range(3):
        tenant.client.post("/v1/nothing", headers=tenant.headers())
    newest = lines(tenant)[0]
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        connection.execute(
            "UPDATE audit SET created_at = now() - interval '366 days' WHERE id <> %s",
            (newest["id"],),
        )
    assert forget_old(tenant.resources) == 2
    assert forget_old(tenant.resources) == 0
    assert [line["id"] for line in lines(tenant)] == [newest["id"]]
