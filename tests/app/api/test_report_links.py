"""A report page can be shared by a link that needs no key and shows nothing of other jobs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest
from fastapi.testclient import TestClient

from app.domain.lifecycle import State
from app.domain.principal import Scope
from app.main import create_app
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import EvaluationConfig
from tests.app.builders import bearer, in_state, key_of, queued

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
SCORED = {"evaluation": EvaluationConfig(perplexity=("pydoc",))}


@pytest.fixture
def closed(settings: Settings) -> Iterator[TestClient]:
    values = settings.model_dump() | {"auth": "on"}
    with TestClient(create_app(Settings(**values))) as client:
        yield client


def shared(client: TestClient, resources: Resources, job_id: str, **query: int) -> dict[str, str]:
    headers = bearer(key_of(resources))
    answer = client.post(f"/v1/jobs/{job_id}/report-links", headers=headers, params=query)
    assert answer.status_code == 201, answer.text
    link: dict[str, str] = answer.json()
    return link


def test_a_link_shows_the_page_without_a_key(closed: TestClient, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED, labels={"team": "secret-project"}, **SCORED)
    other = in_state(resources, State.SUCCEEDED, **SCORED)
    link = shared(closed, resources, job.id, seconds=3600)
    page = closed.get(link["url"])
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert job.id in page.text
    for private in (other.id, "secret-project", 'href="/v1'):
        assert private not in page.text
    again = closed.get(link["url"], headers={"if-none-match": page.headers["etag"]})
    assert again.status_code == 304
    assert datetime.fromisoformat(link["expires_at"]).tzinfo is not None


def test_forged_expired_and_other_links_are_rejected(
    closed: TestClient, resources: Resources
) -> None:
    job, other = (in_state(resources, State.SUCCEEDED) for _ in range(2))
    url = shared(closed, resources, job.id)["url"]
    signer = resources.signer
    rejected = (
        url.replace(job.id, other.id),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        signer.sign_report(job.id, -1),
        signer.sign(job.id, "html", 60).replace("/v1/downloads/", "/v1/reports/"),
    )
    for link in rejected:
        assert closed.get(link).status_code in (403, 404), link
    assert closed.get(f"/v1/reports/{job.id}").status_code == 401


def test_only_those_who_may_write_create_links(closed: TestClient, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    path = f"/v1/jobs/{job.id}/report-links"
    reader = bearer(key_of(resources, Scope.READ))
    assert closed.post(path, headers=reader).status_code == 403
    stranger = bearer(key_of(resources, project="other"))
    assert closed.post(path, headers=stranger).status_code == 404
    writer = bearer(key_of(resources))
    assert closed.post(path, headers=writer, params={"seconds": 10**9}).status_code == 422


def test_there_is_no_link_before_success_and_no_page_after_deletion(
    closed: TestClient, resources: Resources
) -> None:
    writer = bearer(key_of(resources))
    waiting = queued(resources)
    answer = closed.post(f"/v1/jobs/{waiting.id}/report-links", headers=writer)
    assert (answer.status_code, answer.json()["code"]) == (404, "report_not_found")
    job = in_state(resources, State.SUCCEEDED)
    url = shared(closed, resources, job.id)["url"]
    assert closed.delete(f"/v1/jobs/{job.id}", headers=writer).status_code == 204
    gone = closed.get(url)
    assert (gone.status_code, gone.json()["code"]) == (404, "report_not_found")
