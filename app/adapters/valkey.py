"""Clients of Valkey for uses other than the queue: one attempt with a short timeout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import redis
from kombu.exceptions import KombuError
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.domain.errors import BrokerUnavailableError
from app.telemetry.outages import BROKER, OUTAGES

_REJECTIONS = re.compile(
    r"WRONGPASS|NOAUTH|NOPERM|AUTH |invalid username-password|Authentication required"
    r"|invalid password|without any password|DB index is out of range"
)
"""Answers of a server that rejects the password, the user or the database number."""


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


def described(broker_url: str) -> str:
    """Return the server's address as people write it, without user and password."""
    parts = urlsplit(broker_url)
    if not parts.hostname:
        return f"Valkey at {parts.path}"
    return f"Valkey at {parts.hostname}:{parts.port or 6379}"


@contextmanager
def broker_errors(broker_url: str) -> Iterator[None]:
    """Translate the errors of the block, and report the server's state.

    Raises:
        BrokerUnavailableError: naming the server and its reason.
    """
    try:
        yield
    except (redis.RedisError, KombuError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        message = f"{described(broker_url)}: {reason}"
        OUTAGES.note_failure(BROKER, message)
        rejected = _REJECTIONS.search(reason) is not None
        raise BrokerUnavailableError(message, rejected=rejected) from error
    OUTAGES.note_success(BROKER)
