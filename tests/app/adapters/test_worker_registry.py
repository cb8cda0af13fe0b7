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
KEY = "intraslice:workers:dep_one"


def deployment_id() -> str:
    return "dep_one"


@pytest.fixture
def registry(broker_url: str) -> Iterator[WorkerRegistry]:
    opened = WorkerRegistry(broker_url, deployment_id, expiry_seconds=EXPIRY_SECONDS)
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
        client.zadd(KEY, {"silent": seconds - EXPIRY_SECONDS - 1})
        assert registry.count() == 0
        registry.announce("another")
        assert client.zrange(KEY, 0, -1) == [b"another"]
        assert 0 < client.ttl(KEY) <= EXPIRY_SECONDS


def test_workers_of_other_deployments_on_the_broker_are_not_counted(
    registry: WorkerRegistry, broker_url: str
) -> None:
    other = WorkerRegistry(broker_url, lambda: "dep_two", expiry_seconds=EXPIRY_SECONDS)
    registry.announce("a")
    assert (registry.count(), other.count()) == (1, 0)
    other.close()


def test_an_unreachable_valkey_raises(unused_tcp_port: int) -> None:
    registry = WorkerRegistry(
        f"redis://127.0.0.1:{unused_tcp_port}/0", deployment_id, expiry_seconds=EXPIRY_SECONDS
    )
    for call in (registry.count, lambda: registry.announce("a"), lambda: registry.leave("a")):
        with pytest.raises(BrokerUnavailableError):
            call()
