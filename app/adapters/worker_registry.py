"""Registry of live workers in Valkey: workers announce themselves periodically, or expire.

Information for people only, such as why a queue does not move: leases decide who runs a job.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from app.adapters.valkey import broker_errors, open_client

_ANSWER_SECONDS = 1.0
_KEY = "intraslice:workers:{deployment}"

# Valkey's clock, because the clocks of the machines may differ.
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


class WorkerRegistry:
    """Workers that announced themselves within the last `expiry_seconds`.

    All methods raise `BrokerUnavailableError` if Valkey does not answer.

    Args:
        broker_url: URL of Valkey.
        deployment_id: returns the id of the deployment, whose workers are its own.
        expiry_seconds: time after which a silent worker is forgotten (seconds).
    """

    def __init__(
        self, broker_url: str, deployment_id: Callable[[], str], *, expiry_seconds: float
    ) -> None:
        self._deployment_id = deployment_id
        self._expiry_seconds = math.ceil(expiry_seconds)
        self._url = broker_url
        self._client = open_client(broker_url, answer_seconds=_ANSWER_SECONDS)
        self._announce = self._client.register_script(_ANNOUNCE)
        self._count = self._client.register_script(_COUNT)

    def announce(self, worker: str) -> None:
        """Register the worker, or extend its registration."""
        with broker_errors(self._url):
            self._announce(keys=[self._key], args=[worker, self._expiry_seconds])

    def leave(self, worker: str) -> None:
        """Remove the worker, which is shutting down."""
        with broker_errors(self._url):
            self._client.zrem(self._key, worker)

    def count(self) -> int:
        """Return the number of live workers."""
        with broker_errors(self._url):
            return int(self._count(keys=[self._key], args=[self._expiry_seconds]))

    @property
    def _key(self) -> str:
        return _KEY.format(deployment=self._deployment_id())

    def close(self) -> None:
        self._client.close()
