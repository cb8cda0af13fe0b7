"""No tenant sees or changes what is another's: asked of every route in the OpenAPI document."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.domain.principal import Scope
from app.main import create_app
from app.settings import Settings
from tests.app.tenants import MAKERS, QUERIES, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.broker]

OPEN = {"/livez", "/readyz"}
SIGNED = {
    "/v1/archives/{job_id}.zip",
    "/v1/downloads/{job_id}/{name}",
    "/v1/uploads/{upload_id}/parts/{file}/{number}",
}
"""A signed link is its own permission, whoever holds it: test_artifacts.py, test_uploads.py."""

READS_WITH_POST = {"/v1/jobs:validate"}
"""POST because of its body, but it changes nothing: a read key may."""

METHODS = ("get", "put", "post", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """One method of one path, with what the document says of it."""

    method: str
    path: str
    described: Any

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    @property
    def queries(self) -> list[str]:
        declared = self.described.get("parameters", [])
        return [one["name"] for one in declared if one["in"] == "query" and one["required"]]

    @property
    def is_list(self) -> bool:
        return self.method == "get" and not self.parameters and self.path.startswith("/v1/")


DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [
    Operation(method, path, described[method])
    for path, described in DOCUMENT["paths"].items()
    for method in METHODS
    if method in described
]
OF_OBJECTS = [
    one for one in OPERATIONS if (one.parameters or one.queries) and one.path not in SIGNED
]
OVERVIEWS = {"/v1/service"}
"""Numbers of the asking project, no objects; `test_service.py` looks at them."""
LISTS = [one for one in OPERATIONS if one.is_list and not one.queries and one.path not in OVERVIEWS]
CHANGES = [
    one for one in OPERATIONS if one.method != "get" and one.path not in READS_WITH_POST | SIGNED
]


def call(
    operation: Operation, owner: Tenant, headers: dict[str, str] | None = None
) -> httpx.Response:
    """Ask for the owner's objects, with the document's own example as the body."""
    for name in operation.parameters:
        assert name in MAKERS, (
            f"{operation} has the path parameter {name!r}, of which tests/app/tenants.py has no "
            f"maker: add one to MAKERS that makes such an object for a tenant and returns its id"
        )
        owner.made[name] = MAKERS[name](owner)
    for name in operation.queries:
        assert name in QUERIES, f"{operation} needs ?{name}=: add it to QUERIES in tenants.py"
    content = operation.described.get("requestBody", {}).get("content", {})
    return owner.client.request(
        operation.method,
        operation.path.format(**owner.made),
        params={name: QUERIES[name](owner) for name in operation.queries},
        json=content.get("application/json", {}).get("example") if content else None,
        headers=headers,
    )


@pytest.fixture
def ours(closed: TestClient) -> Tenant:
    return Tenant(closed, "ours")


@pytest.fixture
def theirs(closed: TestClient) -> Tenant:
    return Tenant(closed, "theirs")


@pytest.mark.parametrize("operation", OF_OBJECTS, ids=str)
def test_objects_of_another_tenant_do_not_exist(
    operation: Operation, ours: Tenant, theirs: Tenant
) -> None:
    foreign = call(operation, ours, theirs.headers())
    assert foreign.status_code == 404, foreign.text
    assert foreign.headers["content-type"] == "application/problem+json"
    own = call(operation, ours, ours.headers())
    assert own.status_code != 404, f"the object was there for nobody: {own.text}"


@pytest.mark.parametrize("operation", LISTS, ids=str)
def test_lists_hold_nothing_of_another_tenant(
    operation: Operation, ours: Tenant, theirs: Tenant
) -> None:
    ids = [make(ours) for make in MAKERS.values()] + [ours.principal.key_id or ""]
    # What our own keys do is in our own audit log.
    assert ours.client.post("/v1/nothing", headers=ours.headers()).status_code == 404
    foreign = call(operation, ours, theirs.headers())
    assert foreign.status_code == 200, foreign.text
    assert not [one for one in ids if one in foreign.text]
    assert not any("ours" in str(entry.get("project")) for entry in foreign.json()["data"])
    own = call(operation, ours, ours.headers())
    assert [one for one in ids if one in own.text], "the list shows nothing even to its owner"


@pytest.mark.parametrize("operation", CHANGES, ids=str)
def test_a_key_that_may_read_cannot_write(operation: Operation, ours: Tenant) -> None:
    refused = call(operation, ours, ours.headers(Scope.READ))
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing"), refused.text


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_without_a_key_only_health_answers(operation: Operation, closed: TestClient) -> None:
    path = re.sub(r"{\w+}", "x", operation.path)
    status = closed.request(operation.method, path).status_code
    assert status == (200 if operation.path in OPEN else 401)


def test_pages_outside_the_document_are_closed_too(closed: TestClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/metrics", "/v1", "/static/x"):
        assert closed.get(path).status_code == 401, path
