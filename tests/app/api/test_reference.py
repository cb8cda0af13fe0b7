"""The API reference at /docs: public, of this server's files alone, with examples to try."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
KEY = "a-key-for-tests"
REFERENCES = re.compile(r'(?:href|src)="([^"]*)"')


@pytest.fixture
def closed(settings: Settings) -> Iterator[TestClient]:
    values = settings.model_dump() | {"auth": "on", "api_key": KEY}
    with TestClient(create_app(Settings(**values))) as client:
        yield client


def test_page_files_and_document_need_no_key(closed: TestClient) -> None:
    page = closed.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    files = [path for path in REFERENCES.findall(page.text) if path != "/"]
    assert {"/docs/reference.js", "/docs/vendor/swagger-ui-bundle.js", "/openapi.json"} <= {*files}
    for path in files:
        assert closed.get(path).status_code == 200, path
    assert closed.get("/openapi.json").json()["openapi"].startswith("3.1")


def test_the_page_loads_from_this_server_alone(closed: TestClient) -> None:
    page = closed.get("/docs")
    assert not re.search(r"https?://|url\(|<style|<script>", page.text)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; connect-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy


def test_requests_of_the_page_need_a_key(closed: TestClient) -> None:
    assert closed.get("/v1/service").status_code == 401
    assert closed.get("/v1/service", headers={"authorization": f"Bearer {KEY}"}).is_success


def test_a_file_that_is_not_there_is_a_problem(closed: TestClient) -> None:
    for path in ("/docs/none.js", "/docs/../main.py", "/docs/%2e%2e/main.py"):
        assert closed.get(path).status_code in (401, 404), path


def test_the_example_of_a_job_is_accepted_as_it_is(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/v1/jobs:validate", "/v1/jobs"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        answer = client.post(path, json=content["example"])
        assert answer.is_success, (path, answer.text)


def test_a_file_that_is_stored_compressed_is_served_to_every_client(closed: TestClient) -> None:
    path = "/docs/vendor/swagger-ui-bundle.js"
    answers = [closed.get(path, headers={"accept-encoding": by}) for by in ("gzip", "identity")]
    assert [answer.headers.get("content-encoding") for answer in answers] == ["gzip", None]
    assert answers[0].content == answers[1].content  # the client decompresses the first
    assert {answer.headers["content-type"] for answer in answers} == {
        "text/javascript; charset=utf-8"
    }
    again = closed.get(path, headers={"if-none-match": answers[0].headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
