"""Clients of Valkey for uses other than the queue: one attempt with a short timeout."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def open_client(broker_url: str, *, answer_seconds: float) -> redis.Redis:
    """Return a client without retries; it connects at its first request."""
    return redis.Redis.from_url(
        client_url(broker_url),
        socket_timeout=answer_seconds,
        socket_connect_timeout=answer_seconds,
        retry=Retry(NoBackoff(), 0),
    )


def client_url(broker_url: str) -> str:
    """Return Celery's broker URL as redis-py takes it; they differ for unix sockets."""
    parts = urlsplit(broker_url)
    if parts.scheme != "redis+socket":
        return broker_url
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{parts.path}?db={database}"
