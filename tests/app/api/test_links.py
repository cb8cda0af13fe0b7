"""Links to files of a bucket: to the bucket itself, or through the API, which streams them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from fastapi.testclient import TestClient

from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.embedded.seaweed import EmbeddedS3
from app.main import create_app
from app.services import jobs
from app.services.resources import Resources
from app.settings import Settings
from tests.app.api.serving import serving
from tests.app.builders import in_state
from tests.app.forwarding import Forwarder, forwarding

pytestmark = [pytest.mark.postgres, pytest.mark.broker, pytest.mark.object_store]
MEBIBYTE = 2**20


@pytest.fixture
def artifact_store(s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{s3_server.url}/links"


@pytest.fixture
def public_endpoint(s3_server: EmbeddedS3) -> str:
    """The S3 API under another host name than the one in AWS_ENDPOINT."""
    return s3_server.endpoint.replace("127.0.0.1", "localhost")


@pytest.fixture
def direct(settings: Settings, public_endpoint: str) -> Iterator[TestClient]:
    """Application whose clients reach the bucket at its public endpoint."""
    changed = settings.model_copy(update={"store_public_endpoint": public_endpoint})
    with TestClient(create_app(changed), raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def between(
    s3_server: EmbeddedS3, artifact_store: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Forwarder]:
    """A forwarder between the application and the bucket."""
    assert artifact_store
    with forwarding(s3_server.endpoint) as forwarder:
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{forwarder.port}")
        yield forwarder


def weights(client: TestClient | httpx.Client, job_id: str) -> dict[str, Any]:
    files = client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    file: dict[str, Any] = next(file for file in files if file["name"] == "model.safetensors")
    return file


def text_upload(client: TestClient | httpx.Client, content: bytes) -> dict[str, Any]:
    file = {
        "name": "a.txt",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    response = client.post("/v1/uploads", json={"kind": "text", "files": [file]})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def with_large_weights(resources: Resources, content: bytes) -> str:
    """Return a job whose weights have this content."""
    job = in_state(resources, State.SUCCEEDED)
    key = jobs.get_artifact(resources, job.id, "model.safetensors").key
    resources.store.delete([key])
    resources.store.put_new(key, content)
    return job.id


def policy(client: TestClient) -> str:
    header: str = client.get("/").headers["content-security-policy"]
    return header


def test_direct_links_are_signed_for_the_public_endpoint(
    direct: TestClient, resources: Resources, public_endpoint: str
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    file = weights(direct, job.id)
    for method in ("GET", "HEAD"):
        answer = direct.request(method, file["url"], follow_redirects=False)
        assert answer.status_code == 307
        location = answer.headers["location"]
        assert location.startswith(f"{public_endpoint}/")
        assert re.search(r"X-Amz-Expires=60\b", location)
        stored = httpx.request(method, location, trust_env=False)
        assert (stored.status_code, stored.headers["content-length"]) == (200, "1024")
    part = httpx.get(location_of(direct, file), headers={"range": "bytes=10-19"}, trust_env=False)
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))


def location_of(client: TestClient, file: dict[str, Any]) -> str:
    location: str = client.get(file["url"], follow_redirects=False).headers["location"]
    return location


def test_parts_are_sent_to_the_public_endpoint(direct: TestClient, public_endpoint: str) -> None:
    content = b"words " * 1000
    upload = text_upload(direct, content)
    (part,) = upload["files"][0]["parts"]
    assert part["url"].startswith(f"{public_endpoint}/")
    other = part["url"].replace("/0/000000", "/0/000001")
    assert httpx.put(other, content=content, trust_env=False).status_code == 403
    assert httpx.put(part["url"], content=content, trust_env=False).status_code == 200
    assert direct.post(upload["urls"]["complete"]).status_code == 202
    assert direct.get(upload["urls"]["self"]).json()["state"] == "ready"
    assert f"connect-src 'self' {public_endpoint};" in policy(direct)


def test_without_a_public_endpoint_no_link_names_the_bucket(
    client: TestClient, resources: Resources, s3_server: EmbeddedS3
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    answer = client.get(weights(client, job.id)["url"], follow_redirects=False)
    assert (answer.status_code, len(answer.content)) == (200, 1024)
    (part,) = text_upload(client, b"words")["files"][0]["parts"]
    assert part["url"].startswith("/v1/uploads/")
    assert "connect-src 'self';" in policy(client)
    assert s3_server.endpoint not in policy(client)


def test_the_archive_is_the_same_in_both_modes(
    client: TestClient, direct: TestClient, resources: Resources
) -> None:
    content = bytes(range(251)) * 36_000  # more than one chunk
    job_id = with_large_weights(resources, b"")
    key = jobs.get_artifact(resources, job_id, "model.safetensors").key
    for size in (len(content), 1024):
        resources.store.delete([key])
        resources.store.put_new(key, content[:size])
        assert b"".join(resources.store.chunks(key)) == content[:size]
    for opened in (client, direct):
        url = opened.get(f"/v1/jobs/{job_id}/artifacts").json()["archive"]["url"]
        response = opened.get(url)
        assert int(response.headers["content-length"]) == len(response.content)
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            assert archive.testzip() is None
            assert len(archive.namelist()) == 4


def test_downloads_through_the_api_are_read_in_windows(
    settings: Settings, between: Forwarder, resources: Resources
) -> None:
    content = bytes(range(256)) * (5 * MEBIBYTE // 256) + b"end"
    job_id = with_large_weights(resources, content)
    with serving(settings) as (url, _), httpx.Client(base_url=url, trust_env=False) as client:
        file = weights(client, job_id)
        between.requests.clear()
        assert client.get(file["url"]).content == content
        reads = [request.range for request in between.requests if request.method == "GET"]
        assert reads == ["bytes=0-2097151", "bytes=2097152-4194303", "bytes=4194304-5242882"]
        across = {"range": f"bytes={2 * MEBIBYTE - 5}-{2 * MEBIBYTE + 4}"}
        part = client.get(file["url"], headers=across)
        assert part.content == content[2 * MEBIBYTE - 5 : 2 * MEBIBYTE + 5]
        between.requests.clear()
        head = client.head(file["url"])
        assert head.headers["content-length"] == str(len(content))
        assert [request.method for request in between.requests] == ["HEAD"]


def test_parts_through_the_api_reach_the_bucket_in_small_pieces(
    settings: Settings, between: Forwarder, resources: Resources
) -> None:
    content = bytes(range(256)) * (12 * MEBIBYTE // 256)
    with serving(settings) as (url, _), httpx.Client(base_url=url, trust_env=False) as client:
        upload = text_upload(client, content)
        (part,) = upload["files"][0]["parts"]
        between.requests.clear()
        assert client.put(part["url"], content=content).status_code == 204
        sent = [request.body_bytes for request in between.requests if request.method == "PUT"]
        assert sum(sent) == len(content)
        assert max(sent) == 5 * MEBIBYTE
        (key,) = resources.store.keys(f"{resources.deployment.id()}/uploads/{upload['id']}/")
        assert resources.store.sha256(key) == hashlib.sha256(content).hexdigest()


def test_a_download_that_the_bucket_interrupts_is_resumed(
    settings: Settings, between: Forwarder, resources: Resources
) -> None:
    content = bytes(range(256)) * (5 * MEBIBYTE // 256)
    job_id = with_large_weights(resources, content)
    with (
        structlog.testing.capture_logs() as lines,
        serving(settings) as (url, _),
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        file = weights(client, job_id)
        between.ranges_left = 1
        received = until_interrupted(client, file["url"])
        assert received == content[: 2 * MEBIBYTE]
        between.ranges_left = None
        rest = client.get(file["url"], headers={"range": f"bytes={len(received)}-"})
        assert received + rest.content == content
    (line,) = [line for line in lines if line["event"] == "download_interrupted"]
    assert f"http://127.0.0.1:{between.port} rejected the credentials" in line["reason"]


def until_interrupted(client: httpx.Client, url: str) -> bytes:
    """Return the bytes that arrive before the connection is closed."""
    received = b""
    with client.stream("GET", url) as response, contextlib.suppress(httpx.RemoteProtocolError):
        for chunk in response.iter_raw():
            received += chunk
    assert len(received) < int(response.headers["content-length"])
    return received


def test_an_object_that_is_gone_is_not_found(client: TestClient, resources: Resources) -> None:
    job = in_state(resources, State.SUCCEEDED)
    file = weights(client, job.id)
    listed = jobs.list_artifacts(resources, OPERATOR, job.id)
    resources.store.delete([stored.key for stored in listed])
    answer = client.get(file["url"])
    assert (answer.status_code, answer.json()["code"]) == (404, "artifact_not_found")


def test_an_error_of_the_bucket_names_its_host(
    settings: Settings, resources: Resources, s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = in_state(resources, State.SUCCEEDED)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        answer = client.get(weights(client, job.id)["url"])
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert f"{settings.artifact_store} at {s3_server.endpoint}" in answer.json()["detail"]
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert s3_server.endpoint in ready.text
