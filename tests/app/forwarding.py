"""A forwarding HTTP proxy in front of a server, which records the requests that pass it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True, kw_only=True)
class Forwarded:
    method: str
    path: str
    range: str | None
    """Header of the request."""
    body_bytes: int


@dataclass
class Forwarder:
    port: int
    requests: list[Forwarded] = field(default_factory=list)
    ranges_left: int | None = None
    """Requests for ranges that are forwarded; later ones are answered with 403."""
    host: str | None = None
    """Host header of forwarded requests; None leaves the client's, which its signature covers."""


@contextmanager
def forwarding(target: str) -> Iterator[Forwarder]:
    """Forward the requests to a port of this machine to a server at `target`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            wanted = self.headers.get("range")
            forwarder.requests.append(
                Forwarded(method=self.command, path=self.path, range=wanted, body_bytes=len(body))
            )
            if wanted and forwarder.ranges_left is not None:
                forwarder.ranges_left -= 1
                if forwarder.ranges_left < 0:
                    self.send_response(403)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
            self._answer(body)

        def _answer(self, body: bytes) -> None:
            headers = dict(self.headers.items())
            if forwarder.host is not None:
                headers["Host"] = forwarder.host
            connection = HTTPConnection(urlsplit(target).netloc, timeout=30)
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            length = response.getheader("content-length", str(len(content)))
            self.send_header("content-length", length)
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

        def log_message(self, *_arguments: object) -> None:
            """Log nothing: tests inspect the recorded requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    forwarder = Forwarder(port=server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield forwarder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
