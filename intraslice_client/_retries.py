"""Retry rules: which requests are sent again, and after how long a delay."""

from __future__ import annotations

import random
import ssl
import time

import httpx

UNPROCESSED = frozenset({429, 503})
"""Statuses of requests that the service did not process: always safe to retry."""
POSSIBLY_PROCESSED = frozenset({502, 504})
"""Statuses of a proxy that gave up: safe to retry for idempotent requests only."""
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 8.0


def may_retry(outcome: httpx.Response | httpx.TransportError, *, idempotent: bool) -> bool:
    """Return True if sending the request again is safe and may succeed.

    Args:
        outcome: the response, or the error of a request without one.
        idempotent: True if repeating the request has no further effect.
    """
    if isinstance(outcome, httpx.UnsupportedProtocol | httpx.LocalProtocolError) or (
        isinstance(outcome, httpx.ConnectError) and _has_bad_certificate(outcome)
    ):
        return False
    if isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout):
        return True
    if isinstance(outcome, httpx.TransportError):
        return idempotent
    status = outcome.status_code
    return status in UNPROCESSED or (idempotent and status in POSSIBLY_PROCESSED)


def _has_bad_certificate(error: BaseException | None) -> bool:
    """Return True if the server's certificate was rejected, which no retry changes."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Backoff:
    """Growing delays with jitter, until `patience` seconds have passed since the last success."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._delay = _FIRST_DELAY_SECONDS
        self._last_success = time.monotonic()

    def reset(self) -> None:
        """Record a success: delays are short again and `patience` starts anew."""
        self._delay = _FIRST_DELAY_SECONDS
        self._last_success = time.monotonic()

    def next_delay(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Return the seconds to wait, at least `Retry-After`; None once `patience` has run out."""
        delay = self._delay * random.uniform(0.5, 1.0)
        self._delay = min(2 * self._delay, _LONGEST_DELAY_SECONDS)
        if not isinstance(outcome, httpx.TransportError):
            delay = max(delay, _retry_after(outcome))
        remaining = self._last_success + self._patience - time.monotonic()
        return delay if delay <= remaining else None


def _retry_after(response: httpx.Response) -> float:
    """Return `Retry-After` in seconds; the service never sends its other form, a date."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
