"""Token buckets of callers in Valkey, so that all API processes share them."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis

from app.adapters.valkey import broker_errors, open_client
from app.domain.errors import BrokerUnavailableError

_ANSWER_SECONDS = 0.25
_PAUSE_SECONDS = 1.0
_KEY = "intraslice:rate:{deployment}:{caller}"

# The clock is Valkey's: those of the API machines may differ. One that steps back adds no token.
_TAKE_ONE = """
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local gained = math.max(0, now - (tonumber(bucket[2]) or now)) * rate
local tokens = math.min(burst, (tonumber(bucket[1]) or burst) + gained)
local wait = 0
if tokens >= 1 then tokens = tokens - 1 else wait = (1 - tokens) / rate end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens),
           'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(burst / rate) + 1)
return string.format('%.6f', wait)
"""


class RateLimiter:
    """A limit of `per_second` requests on average and `burst` at once for each caller.

    Args:
        broker_url: URL of Valkey.
        deployment_id: returns the id of the deployment, whose callers are its own.
        per_second: sustained rate (requests per second).
        burst: requests at once.
    """

    def __init__(
        self, broker_url: str, deployment_id: Callable[[], str], *, per_second: float, burst: int
    ) -> None:
        self._deployment_id = deployment_id
        self._client = open_client(broker_url, answer_seconds=_ANSWER_SECONDS)
        self._take_one = self._client.register_script(_TAKE_ONE)
        self._limits = (per_second, burst)
        self._url = broker_url
        self._paused_until = 0.0

    def seconds_to_wait(self, caller: str) -> float:
        """Take a token; return 0 on success, else the seconds until one is available.

        Raises:
            BrokerUnavailableError: if Valkey does not answer. It is then not asked for a second, so
                that a hanging server does not delay every request.
        """
        if time.monotonic() < self._paused_until:
            return 0.0
        try:
            key = _KEY.format(deployment=self._deployment_id(), caller=caller)
            with broker_errors(self._url):
                return self._take(key)
        except BrokerUnavailableError:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            raise

    def _take(self, key: str) -> float:
        try:
            # By digest: redis-py's own handling of a missing script costs half as much as the call.
            return float(self._client.evalsha(self._take_one.sha, 1, key, *self._limits))
        except redis.exceptions.NoScriptError:
            return float(self._take_one(keys=[key], args=list(self._limits)))

    def close(self) -> None:
        self._client.close()
