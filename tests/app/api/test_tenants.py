"""No tenant sees or changes objects of another: tested on every route of the OpenAPI document."""

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
    "/v1/reports/{job_id}",
    "/v1/uploads/{upload_id}/parts/{file}/{number}",
}
"""Signed links need no key: see test_artifacts.py and test_uploads.py."""

READS_WITH_POST = {"/v1/jobs:validate"}
"""Operations that are POST for their body but change nothing, so read keys may use them."""

METHODS = ("get", "put", "post", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """One method of one path with its description in the document."""

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
        return [
            parameter["name"]
            for parameter in declared
            if parameter["in"] == "query" and parameter["required"]
        ]

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
    operation
    for operation in OPERATIONS
    if (operation.parameters or operation.queries) and operation.path not in SIGNED
]
OVERVIEWS = {"/v1/service", "/v1/server-paths"}
"""Paths that return no objects of tenants: see `test_service.py` and `test_server_paths.py`."""
LISTS = [
    operation
    for operation in OPERATIONS
    if operation.is_list and not operation.queries and operation.path not in OVERVIEWS
]
CHANGES = [
    operation
    for operation in OPERATIONS
    if operation.method != "get" and operation.path not in READS_WITH_POST | SIGNED
]


def call(
    operation: Operation, owner: Tenant, headers: dict[str, str] | None = None
) -> httpx.Response:
    """Request the owner's objects, with the document's own example as the body."""
    for name in operation.parameters:
        assert name in MAKERS, (
            f"{operation} has the path parameter {name!r}, for which tests/app/tenants.py has no "
            f"maker: add one to MAKERS that creates such an object for a tenant and returns its id"
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
def test_objects_of_another_tenant_are_not_found(
    operation: Operation, ours: Tenant, theirs: Tenant
) -> None:
    foreign = call(operation, ours, theirs.headers())
    assert foreign.status_code == 404, foreign.text
    assert foreign.headers["content-type"] == "application/problem+json"
    own = call(operation, ours, ours.headers())
    assert own.status_code != 404, f"its owner does not get the object either: {own.text}"


@pytest.mark.parametrize("operation", LISTS, ids=str)
def test_lists_contain_no_objects_of_another_tenant(
    operation: Operation, ours: Tenant, theirs: Tenant
) -> None:
    ids = [make(ours) for make in MAKERS.values()] + [ours.principal.key_id or ""]
    # Requests with our keys are in our audit log.
    assert ours.client.post("/v1/nothing", headers=ours.headers()).status_code == 404
    foreign = call(operation, ours, theirs.headers())
    assert foreign.status_code == 200, foreign.text
    assert not [object_id for object_id in ids if object_id in foreign.text]
    assert not any("ours" in str(entry.get("project")) for entry in foreign.json()["data"])
    own = call(operation, ours, ours.headers())
    listed = [object_id for object_id in ids if object_id in own.text]
    assert listed, "the list shows nothing even to its owner"


@pytest.mark.parametrize("operation", CHANGES, ids=str)
def test_a_read_key_cannot_write(operation: Operation, ours: Tenant) -> None:
    rejected = call(operation, ours, ours.headers(Scope.READ))
    assert (rejected.status_code, rejected.json()["code"]) == (403, "scope_missing"), rejected.text


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_operation_but_health_requires_a_key(
    operation: Operation, closed: TestClient
) -> None:
    path = re.sub(r"{\w+}", "x", operation.path)
    status = closed.request(operation.method, path).status_code
    assert status == (200 if operation.path in OPEN else 401)


def test_paths_outside_the_document_require_a_key(closed: TestClient) -> None:
    for path in ("/redoc", "/metrics", "/v1", "/static/x"):
        assert closed.get(path).status_code == 401, path
