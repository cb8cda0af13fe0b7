"""Lease renewal while a job runs, which also reports cancel and pause requests."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from app.domain.errors import LeaseLostError, ServiceError
from app.domain.job import Lease
from app.domain.lifecycle import State
from app.services import claims
from app.services.resources import Resources
from app.telemetry import get_logger

_log = get_logger(__name__)


class LeaseRenewal:
    """A thread that renews one lease every `heartbeat_seconds` while the context is open.

    The worker's own thread cannot: engine and uploads keep it busy.
    """

    def __init__(self, resources: Resources, lease: Lease) -> None:
        self._resources = resources
        self._lease = lease
        self._closing = threading.Event()
        self._lost = threading.Event()
        self._cancel_requested = threading.Event()
        self._pause_requested = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"lease-{lease.job_id}")

    @property
    def lost(self) -> bool:
        """True if another worker may own the job by now."""
        return self._lost.is_set()

    @property
    def cancel_requested(self) -> bool:
        return self._cancel_requested.is_set()

    @property
    def pause_requested(self) -> bool:
        return self._pause_requested.is_set()

    def __enter__(self) -> LeaseRenewal:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        settings = self._resources.settings
        valid_until = time.monotonic() + settings.lease_seconds
        while not self._closing.wait(settings.heartbeat_seconds):
            # Measured before the request, so that we consider the lease lost before others do.
            renewed_at = time.monotonic()
            try:
                self._note_request(claims.renew_lease(self._resources, self._lease))
                valid_until = renewed_at + settings.lease_seconds
            except LeaseLostError:
                self._lost.set()
                return
            except ServiceError as error:
                # The adapter logs an outage, at most once a minute.
                _log.debug("lease_not_renewed", job_id=self._lease.job_id, code=error.code)
                if time.monotonic() > valid_until:
                    _log.warning("lease_expired", job_id=self._lease.job_id, code=error.code)
                    self._lost.set()
                    return

    def _note_request(self, state: State) -> None:
        if state is State.CANCELLING:
            self._cancel_requested.set()
        elif state is State.PAUSING:
            self._pause_requested.set()
