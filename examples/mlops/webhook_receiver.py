"""Webhook receiver that verifies signatures.

    INTRASLICE_WEBHOOK_SECRET=whsec_… python examples/mlops/webhook_receiver.py [PORT]

Prints one line per event. A delivery may arrive twice, always with the same `webhook-id`.
"""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from intraslice_client import ForgedWebhookError, verify_webhook

MAX_BODY_BYTES = 1 << 20


def handle(event: dict[str, Any]) -> None:
    """Handle an event: print it."""
    job = event["data"]
    print(f"{event['type']}: {job['id']} is {job['state']}", flush=True)


def receiver(secret: str, port: int) -> ThreadingHTTPServer:
    """Return a server that answers 204 to signed deliveries and 400 to all others."""
    handled: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("content-length", 0)), MAX_BODY_BYTES))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                event = verify_webhook(secret, headers, body)
            except ForgedWebhookError:
                self._respond(400)
                return
            # Respond first: the service retries deliveries that take too long.
            self._respond(204)
            if headers["webhook-id"] not in handled:
                handled.add(headers["webhook-id"])
                handle(event)

        def _respond(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Log nothing: only events are printed."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    receiver(os.environ["INTRASLICE_WEBHOOK_SECRET"], port).serve_forever()
