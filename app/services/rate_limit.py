"""Rate limits: of requests for each caller, and of failed authentications for each address."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict

from app.adapters.rate_limit import RateLimiter
from app.domain.errors import BrokerUnavailableError
from app.domain.principal import Principal
from app.telemetry import get_logger

_OPERATOR, _NOBODY = "operator", "nobody"
_MAX_WAITING = 4096
_HOST_BITS = 64
"""Host part of an IPv6 address: one holder has all addresses of a network."""
_log = get_logger(__name__)


def seconds_to_wait(limiter: RateLimiter, principal: Principal) -> float:
    """Count a request; return 0 if it is allowed, else the seconds until the next one is."""
    unnamed = _OPERATOR if principal.is_operator else _NOBODY
    return _take(limiter, principal.key_id or unnamed)


class FailedAuthenticationLimit:
    """Limit of failed authentications for each address.

    They are counted in Valkey, for all processes. Addresses that have to wait are remembered in
    this process too, so that neither their attempts nor anybody's valid key costs a request to
    Valkey.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._waiting: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def seconds_to_wait(self, address: str) -> float:
        """Return 0, or the seconds until the address may try again; does no I/O."""
        if not self._waiting:
            return 0.0
        with self._lock:
            return max(0.0, self._waiting.get(_holder(address), 0.0) - time.monotonic())

    def count(self, address: str) -> float:
        """Count a failed authentication; return the seconds until the next attempt is allowed."""
        seconds = self.seconds_to_wait(address)
        if seconds > 0:
            return seconds
        holder = _holder(address)
        seconds = _take(self._limiter, f"address:{holder}")
        if seconds > 0:
            with self._lock:
                self._waiting[holder] = time.monotonic() + seconds
                self._waiting.move_to_end(holder)
                while len(self._waiting) > _MAX_WAITING:
                    self._waiting.popitem(last=False)
        return seconds

    def close(self) -> None:
        self._limiter.close()


def _take(limiter: RateLimiter, caller: str) -> float:
    """Take a token from the caller's bucket; without Valkey all requests are allowed."""
    try:
        return limiter.seconds_to_wait(caller)
    except BrokerUnavailableError as error:
        _log.debug("rate_limit_suspended", reason=error.message, caller=caller)
        return 0.0


def _holder(address: str) -> str:
    """Return the address, or the network of an IPv6 address, which belongs to one holder."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{int(parsed) >> _HOST_BITS:x}/{_HOST_BITS}"
