"""Metrics of processes that serve no requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import start_http_server

from app.settings import Settings


@contextmanager
def metrics_server(settings: Settings) -> Iterator[None]:
    """Answer GET /metrics while the block runs, on the port that is set, if one is."""
    if settings.worker_metrics_port == 0:
        yield
        return
    server, thread = start_http_server(
        settings.worker_metrics_port, addr=settings.worker_metrics_host
    )
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
