"""Who says that he is there is counted, until he leaves or falls silent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from app.adapters.valkey import client_url
from app.adapters.worker_roll import WorkerRoll
from app.domain.errors import BrokerUnavailableError

pytestmark = pytest.mark.broker
PATIENCE = 30


@pytest.fixture
def roll(broker_url: str) -> Iterator[WorkerRoll]:
    opened = WorkerRoll(broker_url, patience=PATIENCE)
    yield opened
    opened.close()


def test_each_is_counted_once_until_it_leaves(roll: WorkerRoll) -> None:
    assert roll.count() == 0
    for worker in ("a", "b", "a"):
        roll.announce(worker)
    assert roll.count() == 2
    roll.leave("a")
    roll.leave("never-there")
    assert roll.count() == 1


def test_who_falls_silent_is_forgotten(roll: WorkerRoll, broker_url: str) -> None:
    roll.announce("silent")
    with redis.Redis.from_url(client_url(broker_url)) as client:
        seconds = client.time()[0]
        client.zadd("intraslice:workers", {"silent": seconds - PATIENCE - 1})
        assert roll.count() == 0
        roll.announce("another")
        assert client.zrange("intraslice:workers", 0, -1) == [b"another"]
        assert 0 < client.ttl("intraslice:workers") <= PATIENCE


def test_without_valkey_it_says_so(unused_tcp_port: int) -> None:
    roll = WorkerRoll(f"redis://127.0.0.1:{unused_tcp_port}/0", patience=PATIENCE)
    for ask in (roll.count, lambda: roll.announce("a"), lambda: roll.leave("a")):
        with pytest.raises(BrokerUnavailableError):
            ask()
