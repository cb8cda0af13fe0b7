"""Generated requests to every operation of the OpenAPI document, by Schemathesis.

The database has one object of each kind, and half of the requests name existing objects. The
application runs with real servers.
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
# Methods that the document does not name are answered with 405: see test_problems.py.
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
def test_every_response_to_a_generated_request_conforms_to_the_document(
    case: Any, tenant: Tenant
) -> None:
    _name_existing_objects(case, tenant)
    request = requests.Request(**case.as_transport_kwargs("http://testserver", tenant.headers()))
    prepared = request.prepare()
    response = tenant.client.request(
        prepared.method, prepared.url, headers=dict(prepared.headers), content=prepared.body
    )
    case.validate_response(response, checks=CHECKS)


def _name_existing_objects(case: Any, tenant: Tenant) -> None:
    """Let about half of the cases name existing objects, depending on the case only."""
    if len(str(case.path_parameters)) % 2:
        for name in tenant.made.keys() & (case.path_parameters or {}).keys():
            case.path_parameters[name] = tenant.made[name]
