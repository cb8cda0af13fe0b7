"""Receives webhooks and believes only those that the service has signed.

    INTRASLICE_WEBHOOK_SECRET=whsec_… python examples/mlops/webhook_receiver.py [PORT]

Prints a line for each event. A delivery may come twice, always with the same `webhook-id`.
"""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from app.client import ForgedWebhookError, verify_webhook

LARGEST_BODY = 1 << 20


def handle(event: dict[str, Any]) -> None:
    """What is done with an event: here it is printed."""
    job = event["data"]
    print(f"{event['type']}: {job['id']} is {job['state']}", flush=True)


def receiver(secret: str, port: int) -> ThreadingHTTPServer:
    """A server that answers 204 to what is signed and 400 to anything else."""
    seen: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("content-length", 0)), LARGEST_BODY))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                event = verify_webhook(secret, headers, body)
            except ForgedWebhookError:
                self._answer(400)
                return
            # Answer first: who waits for long is taken for broken and is asked again.
            self._answer(204)
            if headers["webhook-id"] not in seen:
                seen.add(headers["webhook-id"])
                handle(event)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Events are printed, requests are not."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    receiver(os.environ["INTRASLICE_WEBHOOK_SECRET"], port).serve_forever()
