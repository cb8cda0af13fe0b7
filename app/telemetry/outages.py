"""Outages of servers in the log: a first warning, then a summary a minute, then the recovery.

The adapters report every failed and every successful request; whoever sent the request logs
nothing of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from app.telemetry.logs import get_logger

DATABASE, BROKER, STORE = "database", "broker", "store"
SUMMARY_SECONDS = 60.0
"""Shortest time between two warnings about the same server."""
_log = get_logger(__name__)
_silent: ContextVar[bool] = ContextVar("silent", default=False)


@dataclass
class _Outage:
    """Outage of one server, from its first failed request to the next successful one."""

    began_at: float
    suppressed: int = 0
    announced: bool = False
    """Set once a warning has been logged, so that the recovery is worth a line."""


class Outages:
    """Outages of this process's servers.

    A server that fails and recovers all the time causes two lines a minute, too.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outages: dict[str, _Outage] = {}
        self._warned_at: dict[str, float] = {}
        self._ended_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def note_failure(self, server: str, reason: str) -> None:
        """Log the failure of a request, unless the last warning is younger than a minute."""
        if _silent.get():
            return
        with self._lock:
            now = self._clock()
            outage = self._outages.setdefault(server, _Outage(began_at=now))
            if now - self._warned_at.get(server, -SUMMARY_SECONDS) < SUMMARY_SECONDS:
                outage.suppressed += 1
                return
            self._warned_at[server] = now
            suppressed, outage.suppressed = outage.suppressed, 0
            is_first, outage.announced = not outage.announced and not suppressed, True
        if is_first:
            _log.warning("server_unavailable", server=server, reason=reason)
            return
        seconds = round(now - outage.began_at)
        _log.warning(
            "server_still_unavailable",
            server=server,
            reason=reason,
            seconds=seconds,
            attempts_suppressed=suppressed,
        )

    def lasts(self, server: str) -> bool:
        """Return true if the last request to the server failed."""
        return server in self._outages

    def lasted_within(self, server: str, seconds: float) -> bool:
        """Return true if an outage of the server lasts, or ended at most so long ago."""
        with self._lock:
            ended_at = self._ended_at.get(server)
            since = None if ended_at is None else self._clock() - ended_at
            return server in self._outages or (since is not None and since <= seconds)

    def note_success(self, server: str) -> None:
        """Log the end of an outage that was announced; without an outage, do nothing."""
        if server not in self._outages:
            return
        with self._lock:
            outage = self._outages.pop(server, None)
            now = self._clock()
            self._ended_at[server] = now
        if outage is not None and outage.announced:
            seconds = round(now - outage.began_at)
            _log.warning(
                "server_available_again",
                server=server,
                seconds=seconds,
                attempts_suppressed=outage.suppressed,
            )


@contextmanager
def unreported() -> Iterator[None]:
    """Log no failures of requests in this block: its caller reports them."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


OUTAGES = Outages()
"""Outages of the servers of this process."""
