"""Which workers are there, in Valkey: each says so now and then, and is forgotten when it does not.

Nothing depends on it: leases say who works on what. It tells people why a queue stands still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from app.adapters.valkey import open_client
from app.domain.errors import BrokerUnavailableError

_ANSWER_SECONDS = 1.0
_KEY = "intraslice:workers"

# Time is Valkey's own: the machines need not agree.
_ANNOUNCE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[2]))
"""
_COUNT = """
local now = tonumber(redis.call('TIME')[1])
return redis.call('ZCOUNT', KEYS[1], now - tonumber(ARGV[1]), '+inf')
"""


class WorkerRoll:
    """Who has not been heard for `patience` seconds is not there.

    All methods raise `BrokerUnavailableError` if Valkey does not answer.
    """

    def __init__(self, broker_url: str, *, patience: float) -> None:
        self._patience = math.ceil(patience)
        self._client = open_client(broker_url, answer_seconds=_ANSWER_SECONDS)
        self._announce = self._client.register_script(_ANNOUNCE)
        self._count = self._client.register_script(_COUNT)

    def announce(self, worker: str) -> None:
        """Say that the worker is there."""
        with _answered():
            self._announce(keys=[_KEY], args=[worker, self._patience])

    def leave(self, worker: str) -> None:
        """It ends, in order."""
        with _answered():
            self._client.zrem(_KEY, worker)

    def count(self) -> int:
        """Those that were heard lately."""
        with _answered():
            return int(self._count(keys=[_KEY], args=[self._patience]))

    def close(self) -> None:
        self._client.close()


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise BrokerUnavailableError(f"Valkey does not answer: {error}") from error
