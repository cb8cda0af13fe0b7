"""Renewal of leases while their work runs; that of a job also reports cancel and pause requests."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from app.domain.errors import LeaseLostError, ServiceError
from app.domain.job import Lease
from app.domain.lifecycle import State
from app.services import claims
from app.services.resources import Resources
from app.telemetry import get_logger

_log = get_logger(__name__)


class LeaseRenewal(ABC):
    """A thread that renews one lease every `heartbeat_seconds` while the context is open.

    The worker's own thread cannot: engine, uploads and downloads keep it busy.

    Args:
        resources: the process's resources.
        work: kind and id of what the lease is for, for the log.
    """

    def __init__(self, resources: Resources, work: dict[str, str]) -> None:
        self._resources = resources
        self._work = work
        self._closing = threading.Event()
        self._lost = threading.Event()
        (identifier,) = work.values()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"lease-{identifier}")

    @property
    def lost(self) -> bool:
        """True if another worker may own the work by now, or it was cancelled or deleted."""
        return self._lost.is_set()

    @abstractmethod
    def _renew(self) -> None:
        """Renew the lease once, and note what is reported with it.

        Raises:
            LeaseLostError: if the lease is lost.
            ServiceError: if it could not be renewed now.
        """

    def __enter__(self) -> Self:
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
                self._renew()
                valid_until = renewed_at + settings.lease_seconds
            except LeaseLostError:
                self._lost.set()
                return
            except ServiceError as error:
                # The adapter logs an outage, at most once a minute.
                _log.debug("lease_not_renewed", code=error.code, **self._work)
                if time.monotonic() > valid_until:
                    _log.warning("lease_expired", code=error.code, **self._work)
                    self._lost.set()
                    return


class JobLease(LeaseRenewal):
    """Renewal of a job's lease, which also reports cancel and pause requests."""

    def __init__(self, resources: Resources, lease: Lease) -> None:
        super().__init__(resources, {"job_id": lease.job_id})
        self._lease = lease
        self._cancel_requested = threading.Event()
        self._pause_requested = threading.Event()

    @property
    def cancel_requested(self) -> bool:
        return self._cancel_requested.is_set()

    @property
    def pause_requested(self) -> bool:
        return self._pause_requested.is_set()

    def _renew(self) -> None:
        state = claims.renew_lease(self._resources, self._lease)
        if state is State.CANCELLING:
            self._cancel_requested.set()
        elif state is State.PAUSING:
            self._pause_requested.set()
