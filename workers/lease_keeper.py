"""Keeps a lease alive while the work goes on, and listens for "stop"."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from app.domain.errors import LeaseLostError, ServiceError
from app.domain.lease import Lease
from app.domain.lifecycle import State
from app.services import claims
from app.services.resources import Resources
from app.telemetry import get_logger

_log = get_logger(__name__)


class LeaseKeeper:
    """A thread, because uploads and engine both keep the worker's own thread busy."""

    def __init__(self, resources: Resources, lease: Lease) -> None:
        self._resources = resources
        self._lease = lease
        self._done = threading.Event()
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        self._paused = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"lease-{lease.job_id}")

    @property
    def lost(self) -> bool:
        """Whether the job must be taken for another worker's."""
        return self._lost.is_set()

    @property
    def cancel_requested(self) -> bool:
        return self._cancelled.is_set()

    @property
    def pause_requested(self) -> bool:
        return self._paused.is_set()

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        settings = self._resources.settings
        valid_until = time.monotonic() + settings.lease_seconds
        while not self._done.wait(settings.heartbeat_seconds):
            # Measured before the database is asked, so that our idea of the end is the earlier.
            asked = time.monotonic()
            try:
                state = claims.renew_lease(self._resources, self._lease)
                if state is State.CANCELLING:
                    self._cancelled.set()
                elif state is State.PAUSING:
                    self._paused.set()
                valid_until = asked + settings.lease_seconds
            except LeaseLostError:
                self._lost.set()
                return
            except ServiceError as error:
                _log.warning("lease_not_renewed", job_id=self._lease.job_id, code=error.code)
                if time.monotonic() > valid_until:
                    self._lost.set()
                    return
