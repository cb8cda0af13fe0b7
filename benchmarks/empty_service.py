"""A service without content, which commands on a service can ask."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_EMPTY_PAGE = json.dumps({"data": [], "has_more": False, "next_cursor": None}).encode()


class _EmptyList(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(_EMPTY_PAGE)))
        self.end_headers()
        self.wfile.write(_EMPTY_PAGE)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def empty_service() -> Iterator[str]:
    """Serve empty pages and yield the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _EmptyList) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
