"""Spans, recorded in memory; `tests/system/test_traces.py` covers all processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.telemetry.traces import (
    current_trace_id,
    current_traceparent,
    install_processor,
    span,
    stop_tracing,
)


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    install_processor(SimpleSpanProcessor(exporter), "tests")
    yield exporter
    stop_tracing()


def test_without_an_endpoint_nothing_is_recorded_or_imported() -> None:
    """Import our module only: redis imports the SDK itself where it is installed."""
    code = """
import sys
from app.telemetry.traces import configure_tracing, current_traceparent, span
configure_tracing("", "tests")
with span("x") as current:
    assert current is None
    assert current_traceparent() is None
assert "opentelemetry.sdk" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_span_continues_a_remote_trace(exported: InMemorySpanExporter) -> None:
    with span("outer", attributes={"number": 1}):
        carried = current_traceparent()
        trace_id = current_trace_id()
    assert carried is not None
    with span("elsewhere", parent=carried):
        pass
    outer, elsewhere = exported.get_finished_spans()
    assert elsewhere.parent is not None
    assert outer.context is not None
    assert elsewhere.parent.span_id == outer.context.span_id
    assert f"{outer.context.trace_id:032x}" == trace_id
    assert outer.attributes == {"number": 1}


def test_an_invalid_parent_is_ignored(exported: InMemorySpanExporter) -> None:
    with span("root", parent="not a traceparent"):
        pass
    (root,) = exported.get_finished_spans()
    assert root.parent is None


def test_requests_are_spans_named_by_route_except_health_checks(
    client: TestClient, exported: InMemorySpanExporter
) -> None:
    client.get("/livez")
    client.get("/v1/jobs/one")
    (request,) = exported.get_finished_spans()
    assert request.name == "GET /v1/jobs/{job_id}"
    assert request.attributes == {
        "http.route": "/v1/jobs/{job_id}",
        "http.response.status_code": 404,
    }
