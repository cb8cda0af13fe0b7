"""Schemathesis asks every operation of the OpenAPI document things nobody thinks of.

The database holds one object of each kind, and half of the requests find what they name. The
application is the real one, with the real servers behind it.
"""

from __future__ import annotations

from typing import Any

import pytest
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.main import create_app
from app.settings import Settings
from tests.app.tenants import MAKERS, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ENDLESS = "stream$"
"""Event streams of running jobs end when the job does; they have tests of their own."""

DOCUMENT = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
# Methods that the document does not name are answered with 405; test_problems.py looks at that.
DOCUMENT.config.phases.coverage.enabled = False
SCHEMA = DOCUMENT.exclude(path_regex=ENDLESS)


@pytest.fixture
def tenant(closed: TestClient) -> Tenant:
    made = Tenant(closed, "fuzzed")
    for name, make in MAKERS.items():
        made.made[name] = make(made)
    return made


@SCHEMA.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_too_strange(case: Any, tenant: Tenant) -> None:
    _find_something(case, tenant)
    request = requests.Request(**case.as_transport_kwargs("http://testserver", tenant.headers()))
    prepared = request.prepare()
    response = tenant.client.request(
        prepared.method, prepared.url, headers=dict(prepared.headers), content=prepared.body
    )
    case.validate_response(response, checks=CHECKS)


def _find_something(case: Any, tenant: Tenant) -> None:
    """Lead about half of the cases to objects that are there; the choice is the case's own."""
    if len(str(case.path_parameters)) % 2:
        for name in tenant.made.keys() & (case.path_parameters or {}).keys():
            case.path_parameters[name] = tenant.made[name]
