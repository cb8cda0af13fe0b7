"""When a request is sent again, and after which pause."""

from __future__ import annotations

import random
import time

import httpx

NOT_DONE = frozenset({429, 503})
"""Nothing was done: whatever was asked may be asked again."""
MAYBE_DONE = frozenset({502, 504})
"""Something in between gave up: only what may be done twice is asked again."""
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 8.0


def may_repeat(outcome: httpx.Response | httpx.TransportError, *, repeatable: bool) -> bool:
    """Whether sending again is safe and may help.

    Args:
        outcome: an answer, or what came instead of one.
        repeatable: whether doing it twice is doing it once.
    """
    if isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout):
        return True
    if isinstance(outcome, httpx.TransportError):
        return repeatable
    status = outcome.status_code
    return status in NOT_DONE or (repeatable and status in MAYBE_DONE)


class Pauses:
    """Growing pauses with jitter, until `patience` seconds have passed since it was last well."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._next = _FIRST_PAUSE
        self._since = time.monotonic()

    def well(self) -> None:
        """Something has come: patience begins anew."""
        self._next = _FIRST_PAUSE
        self._since = time.monotonic()

    def after(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds to wait, at least those that the service asks for; None: no patience is left."""
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(2 * self._next, _LONGEST_PAUSE)
        if not isinstance(outcome, httpx.TransportError):
            pause = max(pause, _asked_for(outcome))
        left = self._since + self._patience - time.monotonic()
        return pause if pause <= left else None


def _asked_for(response: httpx.Response) -> float:
    """`Retry-After` in seconds; its other form, a date, is not ours."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
