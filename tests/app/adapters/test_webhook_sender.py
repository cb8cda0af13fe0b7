"""Webhook requests, the addresses they are sent to, and hostile receivers."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.adapters.webhook_destinations import DestinationGuard, Resolver
from app.adapters.webhook_sender import WebhookSender
from tests.app.receivers import receiver

# A key and a self-signed certificate for "localhost", made for these tests, good until 2126.
CERTIFICATE = Path(__file__).with_name("localhost.pem")


def sender(
    resolve: Resolver | None = None, *, timeout: float = 10.0, tls: ssl.SSLContext | None = None
) -> WebhookSender:
    guard = DestinationGuard(allow_loopback=True, resolve=resolve)
    return WebhookSender(guard, timeout=timeout, tls=tls)


def test_a_request_arrives_with_its_headers_and_body() -> None:
    with receiver() as there:
        answer = sender().send(there.url, {"webhook-id": "msg_1"}, b'{"a":1}')
    assert (answer.status, answer.error, answer.accepted) == (204, None, True)
    (request,) = there.received
    assert (request.path, request.body, request.id) == ("/hook?a=b", b'{"a":1}', "msg_1")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == there.url.split("/")[2]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with receiver() as target, receiver(headers={"location": target.url}) as there:
        there.statuses = [status]
        answer = sender().send(there.url, {}, b"{}")
    assert (answer.status, answer.accepted) == (status, False)
    assert target.received == []


def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as there:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert sender().send(there.url, {}, b"{}").accepted
    assert proxy.received == []


def test_a_host_is_resolved_once_and_the_checked_address_is_used() -> None:
    """Simulate DNS rebinding: the second resolution returns another address."""
    resolved_hosts = []

    def rebinding(host: str, _port: int) -> list[str]:
        resolved_hosts.append(host)
        return ["127.0.0.1"] if len(resolved_hosts) == 1 else ["10.0.0.1"]

    with receiver() as there:
        url = there.url.replace("127.0.0.1", "rebinding.example")
        rebound = sender(rebinding)
        assert rebound.send(url, {}, b"{}").status == 204
        assert resolved_hosts == ["rebinding.example"]
        rejected = rebound.send(url, {}, b"{}")
    assert rejected.error == "The host is not on the public internet"
    assert len(there.received) == 1
    assert there.received[0].headers["host"].startswith("rebinding.example:")


def test_a_name_that_resolves_to_a_private_address_later_is_rejected_when_sending() -> None:
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    guard = DestinationGuard(allow_loopback=False, resolve=lambda _host, _port: next(answers))
    with receiver() as there:
        url = there.url.replace("http://127.0.0.1", "https://moving.example")
        guard.addresses(guard.parse(url))
        answer = WebhookSender(guard, timeout=5).send(url, {}, b"{}")
    assert answer.error == "The host is not on the public internet"
    assert there.received == []


def test_next_address_is_tried_if_one_does_not_answer() -> None:
    with receiver() as there:
        both = sender(lambda _host, _port: ["::1", "127.0.0.1"])
        assert both.send(there.url.replace("127.0.0.1", "both.example"), {}, b"{}").accepted


def trusting(path: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(path))


def test_certificate_is_verified_against_the_name_in_the_url() -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(CERTIFICATE)
    local: Resolver = lambda _host, _port: ["127.0.0.1"]  # noqa: E731
    with receiver(serving) as there:
        assert sender(local, tls=trusting(CERTIFICATE)).send(there.url, {}, b"{}").accepted
        other_name = there.url.replace("localhost", "other.example")
        for rejected in (
            sender(local).send(there.url, {}, b"{}"),
            sender(local, tls=trusting(CERTIFICATE)).send(other_name, {}, b"{}"),
        ):
            assert rejected.status is None
            assert "CERTIFICATE_VERIFY_FAILED" in (rejected.error or "")
    assert len(there.received) == 1


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one connection with a given function."""

    def run() -> None:
        connection, _address = listening.accept()
        with connection:
            connection.recv(65_536)
            try:
                serve(connection)
            except OSError:
                ended.set()

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        # The server notices that the client has closed the connection.
        thread.join(20)
        assert ended.is_set()


def test_an_endless_body_is_not_read() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65_536)

    with raw_server(endless) as url:
        assert sender().send(url, {}, b"{}").status == 200


def test_a_slow_response_ends_at_the_timeout() -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"x")
            threading.Event().wait(0.02)

    with raw_server(drip) as url:
        assert sender(timeout=0.3).send(url, {}, b"{}").error == "no answer within 0.3 s"


def test_an_unreachable_host_and_an_invalid_response_are_reported_as_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    assert "ConnectError" in (sender().send(url, {}, b"{}").error or "")

    def speak_ssh(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65_536)

    with raw_server(speak_ssh) as url:
        assert "RemoteProtocolError" in (sender().send(url, {}, b"{}").error or "")
