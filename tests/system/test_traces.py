"""One trace from the request through the queue into the engine process."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.telemetry.traces import configure_tracing, stop_tracing
from tests.system.collector import collector
from tests.workers.test_worker import body, state, tiny_model, wait_for, worker

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


def test_one_trace_spans_api_worker_and_child(settings: Settings, tmp_path: Path) -> None:
    model, log = tiny_model(tmp_path), tmp_path / "worker.log"
    with collector() as collected:
        traced = settings.model_copy(update={"otel_endpoint": collected.url})
        configure_tracing(traced.traces_url, "intraslice-api")
        try:
            with TestClient(create_app(traced)) as client, worker(traced, log) as process:
                headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
                job = client.post("/v1/jobs", json=body(model), headers=headers).json()
                wait_for(lambda: state(client, job) in {"succeeded", "failed"}, log, 400)
                assert state(client, job) == "succeeded", log.read_text()[-3000:]
                process.terminate()
                assert process.wait(60) == 0, log.read_text()[-3000:]
        finally:
            stop_tracing()
        spans = [span for span in collected.spans if span.trace_id == TRACE]
    names = {(span.service, span.name): span for span in spans}
    request = names["intraslice-api", "POST /v1/jobs"]
    attempt = names["intraslice-worker", "job attempt"]
    engine = names["intraslice-child", "engine"]
    assert request.parent_id == CALLER
    assert attempt.parent_id == request.span_id
    assert engine.parent_id == attempt.span_id
    stages = {span.name for span in spans if span.parent_id == engine.span_id}
    assert {"stage load", "stage calibrate", "stage compress", "stage evaluate"} <= stages
    assert names["intraslice-worker", "upload"].parent_id == attempt.span_id
    assert TRACE in log.read_text()
