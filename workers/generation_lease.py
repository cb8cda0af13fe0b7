"""Lease renewal while a generation runs, which also reports jobs that wait for the slot."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from app.domain.errors import LeaseLostError, ServiceError
from app.domain.generation import GenerationClaim
from app.domain.worker import FreeSlots
from app.services import generation_claims
from app.services.resources import Resources
from app.telemetry import get_logger

_log = get_logger(__name__)


class GenerationLease:
    """A thread that renews one claim every `heartbeat_seconds` while the context is open.

    The worker's own thread cannot: downloads keep it busy.
    """

    def __init__(
        self, resources: Resources, claim: GenerationClaim, slots: FreeSlots | None
    ) -> None:
        self._resources = resources
        self._claim = claim
        self._slots = slots
        self._closing = threading.Event()
        self._lost = threading.Event()
        self._job_waits = threading.Event()
        name = f"lease-{claim.generation_id}"
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    @property
    def lost(self) -> bool:
        """True if the generation was cancelled or deleted, or may be another worker's by now."""
        return self._lost.is_set()

    @property
    def job_waits(self) -> bool:
        """True if a job waits that the slot could run."""
        return self._job_waits.is_set()

    def __enter__(self) -> GenerationLease:
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
                if generation_claims.renew(self._resources, self._claim, self._slots):
                    self._job_waits.set()
                valid_until = renewed_at + settings.lease_seconds
            except LeaseLostError:
                self._lost.set()
                return
            except ServiceError as error:
                # The adapter logs an outage, at most once a minute.
                _log.debug("claim_not_renewed", code=error.code)
                if time.monotonic() > valid_until:
                    self._lost.set()
                    return
