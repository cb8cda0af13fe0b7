"""HEAD works wherever GET does: the same status and headers, without the body."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.routing import Route

from app.domain.lifecycle import State
from app.main import _ROUTERS, create_app
from app.services.resources import Resources
from app.settings import Settings
from tests.app.api.serving import serving
from tests.app.builders import BODY, in_state, running
from tests.app.generating import prompted

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
_CHANGING = {"date", "x-request-id"}
_WITH_TIMES = ("/metrics", "/v1/models", "/v1/service", "/artifacts")
"""Ends of paths whose body differs from one request to the next."""


@pytest.fixture
def served(settings: Settings) -> Iterator[httpx.Client]:
    allowed = settings.model_copy(update={"webhook_allow_loopback": True})
    with serving(allowed) as (url, _), connected(url) as client:
        yield client


def connected(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30, trust_env=False)


def templates(settings: Settings) -> set[str]:
    """Return the path templates of all GET routes."""
    routes = [route for router in _ROUTERS for route in router.routes]
    routes += [route for route in create_app(settings).routes if isinstance(route, Route)]
    return {
        route.path
        for route in routes
        if isinstance(route, Route) and route.methods and "GET" in route.methods
    }


def urls(client: httpx.Client, resources: Resources) -> dict[str, str]:
    """Return a URL of each template, with ids of existing objects."""
    first, second = (in_state(resources, State.SUCCEEDED).id for _ in range(2))
    generation = prompted(resources)
    signer = resources.signer

    def created(path: str, **body: object) -> str:
        response = client.post(path, json=body)
        assert response.is_success, response.text
        made: dict[str, str] = response.json()
        return f"{path}/{made['id']}"

    file = {"name": "a.txt", "bytes": 5, "sha256": "0" * 64}
    webhook = created("/v1/webhooks", url="http://127.0.0.1:9999/", events=["job.failed"])
    job = f"/v1/jobs/{first}"
    parts = ("", "/events", "/events/stream", "/logs", "/report", "/artifacts", "/hand-offs")
    return {f"/v1/jobs/{{job_id}}{part}": f"{job}{part}" for part in parts} | {
        "/v1/jobs/{job_id}/generations": f"{job}/generations",
        "/v1/jobs/{job_id}/generations/{generation_id}": (
            f"/v1/jobs/{generation.job_id}/generations/{generation.id}"
        ),
        "/dashboard/{name:path}": "/dashboard/main.js",
        "/docs/{name:path}": "/docs/reference.js",
        "/v1/reports/{job_id}": signer.sign_report(first, 60),
        "/v1/downloads/{job_id}/{name:path}": signer.sign(first, "model.safetensors", 60),
        "/v1/archives/{job_id}.zip": signer.sign_archive(first, 60),
        "/v1/compare": f"/v1/compare?jobs={first},{second}",
        "/v1/keys/{key_id}": created("/v1/keys", name="k", scope="read"),
        "/v1/sweeps/{sweep_id}": created("/v1/sweeps", ratios=[0.1], **BODY | {"compression": {}}),
        "/v1/uploads/{upload_id}": created("/v1/uploads", kind="text", files=[file]),
        "/v1/webhooks/{webhook_id}": webhook,
        "/v1/webhooks/{webhook_id}/deliveries": f"{webhook}/deliveries",
    }


def headers(response: httpx.Response) -> dict[str, str]:
    changing = set(_CHANGING)
    if response.request.url.path.endswith(_WITH_TIMES):
        changing |= {"content-length", "etag"}
    return {name: value for name, value in response.headers.items() if name not in changing}


def test_every_get_route_answers_head_with_the_headers_of_get(
    served: httpx.Client, settings: Settings, resources: Resources
) -> None:
    by_template = urls(served, resources)
    for template in sorted(templates(settings)):
        url = by_template.get(template, template)
        assert "{" not in url, f"add a URL of {template} to this test"
        response, head = served.get(url), served.head(url)
        assert response.status_code == 200, (url, response.text)
        assert (head.status_code, head.content) == (200, b""), url
        assert headers(head).items() >= headers(response).items() - {
            ("transfer-encoding", "chunked")
        }, url


def test_head_of_an_event_stream_does_not_wait_for_events(
    settings: Settings, resources: Resources
) -> None:
    job = running(resources)
    with serving(settings) as (url, app), connected(url) as client:
        head = client.head(f"/v1/jobs/{job.id}/events/stream")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")
        # The connection carries the next request: nothing of the stream follows.
        assert client.get("/livez").status_code == 200
        deadline = time.monotonic() + 30
        while app.state.watching._jobs and time.monotonic() < deadline:
            time.sleep(0.01)
        assert app.state.watching._jobs == {}


def test_head_has_the_errors_of_get(served: httpx.Client) -> None:
    for path, status in (("/v1/jobs/nothing", 404), ("/nowhere", 404), ("/v1/jobs:validate", 405)):
        head = served.head(path)
        assert (head.status_code, head.content) == (status, b"")
    assert served.head("/v1/jobs:validate").headers["allow"] == "POST"


def test_head_needs_a_key_as_get_does(closed: httpx.Client) -> None:
    assert closed.head("/v1/jobs").status_code == 401
    assert closed.head("/v1/jobs", headers={"authorization": "Bearer wrong"}).status_code == 401


def test_the_description_has_no_head_operations(settings: Settings) -> None:
    methods = {
        method for path in create_app(settings).openapi()["paths"].values() for method in path
    }
    assert methods == {"get", "post", "put", "patch", "delete"}
