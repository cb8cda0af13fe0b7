"""Addresses that keep sending wrong keys have to wait."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict

from app.adapters.rate_limit import RateLimiter
from app.services.rate_limits import take

_MOST = 4096
_HOST_BITS = 64
"""Of an IPv6 address: everybody has so many of them."""


class WrongKeys:
    """Counted in Valkey, for all processes; who has to wait is remembered here too.

    So neither a guess that has to wait nor anybody's right key costs a question to Valkey.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._waiting: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def seconds_to_wait(self, address: str) -> float:
        """0 unless the address has sent too many; waits for nobody."""
        if not self._waiting:
            return 0.0
        with self._lock:
            return max(0.0, self._waiting.get(_holder(address), 0.0) - time.monotonic())

    def count(self, address: str) -> float:
        """Note a wrong key; the seconds until the next one may be tried."""
        seconds = self.seconds_to_wait(address)
        if seconds > 0:
            return seconds
        holder = _holder(address)
        seconds = take(self._limiter, f"address:{holder}")
        if seconds > 0:
            with self._lock:
                self._waiting[holder] = time.monotonic() + seconds
                self._waiting.move_to_end(holder)
                while len(self._waiting) > _MOST:
                    self._waiting.popitem(last=False)
        return seconds

    def close(self) -> None:
        self._limiter.close()


def _holder(address: str) -> str:
    """What belongs to one holder counts as one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{int(parsed) >> _HOST_BITS:x}/{_HOST_BITS}"
