"""The published OpenAPI document equals that of the application."""

from __future__ import annotations

import json
import re
from pathlib import Path

from app.main import create_app
from app.settings import Settings

SNAPSHOT = Path(__file__).parents[3] / "openapi.json"
UPDATE = (
    "python -c 'import json; from app.main import create_app; from app.settings import Settings;"
    " print(json.dumps(create_app(Settings()).openapi(), indent=2, sort_keys=True))' > openapi.json"
)


def test_snapshot_is_current(tmp_path: Path) -> None:
    described = create_app(Settings(data_dir=tmp_path)).openapi()
    assert described["openapi"].startswith("3.1")
    assert json.loads(SNAPSHOT.read_text()) == described, f"update it: {UPDATE}"


def test_every_route_is_described_with_its_problem_responses() -> None:
    paths = json.loads(SNAPSHOT.read_text())["paths"]
    assert set(paths) == {
        "/livez",
        "/metrics",
        "/readyz",
        "/v1/archives/{job_id}.zip",
        "/v1/audit",
        "/v1/compare",
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/jobs:validate",
        "/v1/jobs/{job_id}/hand-offs",
        "/v1/jobs/{job_id}/generate",
        "/v1/jobs/{job_id}/generations",
        "/v1/jobs/{job_id}/generations/{generation_id}",
        "/v1/jobs/{job_id}/generations/{generation_id}/cancel",
        "/v1/jobs/{job_id}/artifacts",
        "/v1/jobs/{job_id}/cancel",
        "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/events/stream",
        "/v1/jobs/{job_id}/logs",
        "/v1/jobs/{job_id}/pause",
        "/v1/jobs/{job_id}/pin",
        "/v1/jobs/{job_id}/report",
        "/v1/jobs/{job_id}/report-links",
        "/v1/reports/{job_id}",
        "/v1/jobs/{job_id}/resume",
        "/v1/jobs/{job_id}/retry",
        "/v1/jobs/{job_id}/unpin",
        "/v1/keys",
        "/v1/keys/{key_id}",
        "/v1/models",
        "/v1/downloads/{job_id}/{name}",
        "/v1/uploads",
        "/v1/uploads/{upload_id}",
        "/v1/uploads/{upload_id}/complete",
        "/v1/uploads/{upload_id}/parts/{file}/{number}",
        "/v1/server-paths",
        "/v1/service",
        "/v1/sweeps",
        "/v1/sweeps/{sweep_id}",
        "/v1/sweeps/{sweep_id}/cancel",
        "/v1/sweeps/{sweep_id}/ratios",
        "/v1/webhooks",
        "/v1/webhooks/{webhook_id}",
        "/v1/webhooks/{webhook_id}/deliveries",
        "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
        "/v1/webhooks/{webhook_id}/rotate",
        "/v1/webhooks/{webhook_id}/test",
    }
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert set(response["content"]) == {"application/problem+json"}, (path, status)


def test_operation_ids_are_the_unique_names_of_route_functions() -> None:
    described = json.loads(SNAPSHOT.read_text())["paths"]
    operations = {
        (method, path): operation["operationId"]
        for path, methods in described.items()
        for method, operation in methods.items()
    }
    assert len(set(operations.values())) == len(operations)
    assert operations["post", "/v1/jobs"] == "create_job"
    assert operations["get", "/v1/jobs/{job_id}"] == "get_job"
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in operations.values())
