"""Count of live workers: announced, left, expired."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from app.adapters.valkey import client_url
from app.adapters.worker_registry import WorkerRegistry
from app.domain.errors import BrokerUnavailableError

pytestmark = pytest.mark.broker
EXPIRY_SECONDS = 30


@pytest.fixture
def registry(broker_url: str) -> Iterator[WorkerRegistry]:
    opened = WorkerRegistry(broker_url, expiry_seconds=EXPIRY_SECONDS)
    yield opened
    opened.close()


def test_each_worker_is_counted_once_until_it_leaves(registry: WorkerRegistry) -> None:
    assert registry.count() == 0
    for worker in ("a", "b", "a"):
        registry.announce(worker)
    assert registry.count() == 2
    registry.leave("a")
    registry.leave("never-there")
    assert registry.count() == 1


def test_silent_workers_expire(registry: WorkerRegistry, broker_url: str) -> None:
    registry.announce("silent")
    with redis.Redis.from_url(client_url(broker_url)) as client:
        seconds = client.time()[0]
        client.zadd("intraslice:workers", {"silent": seconds - EXPIRY_SECONDS - 1})
        assert registry.count() == 0
        registry.announce("another")
        assert client.zrange("intraslice:workers", 0, -1) == [b"another"]
        assert 0 < client.ttl("intraslice:workers") <= EXPIRY_SECONDS


def test_an_unreachable_valkey_raises(unused_tcp_port: int) -> None:
    registry = WorkerRegistry(
        f"redis://127.0.0.1:{unused_tcp_port}/0", expiry_seconds=EXPIRY_SECONDS
    )
    for call in (registry.count, lambda: registry.announce("a"), lambda: registry.leave("a")):
        with pytest.raises(BrokerUnavailableError):
            call()
