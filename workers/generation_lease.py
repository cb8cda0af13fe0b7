"""Renewal of a generation's lease, which also reports jobs that wait for the slot."""

from __future__ import annotations

import threading

from app.domain.generation import GenerationClaim
from app.domain.worker import FreeSlots
from app.services import generation_claims
from app.services.resources import Resources
from workers.lease_renewal import LeaseRenewal


class GenerationLease(LeaseRenewal):
    """Renewal of a generation's lease, lost once the generation is cancelled or deleted."""

    def __init__(
        self, resources: Resources, claim: GenerationClaim, slots: FreeSlots | None
    ) -> None:
        super().__init__(resources, {"generation_id": claim.generation_id})
        self._claim = claim
        self._slots = slots
        self._job_waits = threading.Event()

    @property
    def job_waits(self) -> bool:
        """True if a job waits that the slot could run."""
        return self._job_waits.is_set()

    def _renew(self) -> None:
        if generation_claims.renew(self._resources, self._claim, self._slots):
            self._job_waits.set()
