"""Which workers are there, in Valkey: each says so now and then, and is forgotten when it does not.

Nothing depends on it: leases say who works on what. It tells people why a queue stands still.
"""

from __future__ import annotations

import math

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.adapters.rate_limit import client_url
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
        self._client = redis.Redis.from_url(
            client_url(broker_url),
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._announce = self._client.register_script(_ANNOUNCE)
        self._count = self._client.register_script(_COUNT)

    def announce(self, worker: str) -> None:
        """Say that the worker is there."""
        try:
            self._announce(keys=[_KEY], args=[worker, self._patience])
        except redis.RedisError as error:
            raise BrokerUnavailableError(f"Valkey does not answer: {error}") from error

    def leave(self, worker: str) -> None:
        """It ends, in order."""
        try:
            self._client.zrem(_KEY, worker)
        except redis.RedisError as error:
            raise BrokerUnavailableError(f"Valkey does not answer: {error}") from error

    def count(self) -> int:
        """Those that were heard lately."""
        try:
            return int(self._count(keys=[_KEY], args=[self._patience]))
        except redis.RedisError as error:
            raise BrokerUnavailableError(f"Valkey does not answer: {error}") from error

    def close(self) -> None:
        self._client.close()
