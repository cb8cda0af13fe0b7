"""Slots of a worker: each runs one job at a time, woken by a hint or by the worker's own look.

A job on several GPUs takes as many slots on equal ones. While the most urgent job needs more of
them than are free, none of them starts another: otherwise shorter jobs would always come first.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from app.domain.job import JobRecord
from app.domain.worker import Device, FreeSlots, Slot
from app.services import claims, fleet
from app.services.resources import Resources
from app.telemetry.outages import BROKER, OUTAGES
from workers.runner import run_job


class JobSlots:
    """Runs jobs on the worker's slots, one at a time on each, whoever starts them.

    Args:
        resources: the process's resources.
        owner: this worker's name, for leases.
        stopping: set when the worker stops; running jobs then return to the queue.
        slots: places for jobs on this worker's devices.
    """

    def __init__(
        self,
        resources: Resources,
        owner: str,
        stopping: threading.Event,
        slots: Sequence[Slot],
    ) -> None:
        self._resources = resources
        self._owner = owner
        self._stopping = stopping
        self.total = len(slots)
        """Number of slots, free or not."""
        self._slots = tuple(slots)
        self._free = list(slots)
        self._lock = threading.Lock()
        self._claiming = threading.Lock()
        """Held during a claim, so that two threads do not claim for the same slots."""

    def run_queued(self) -> int:
        """Run the most urgent jobs on each kind of device while it can run any; return how many.

        Without a free slot nothing is to be done: the busy ones look for further jobs themselves.
        """
        jobs = 0
        tried: list[Device] = []
        for slot in self._slots:
            if slot.device not in tried:
                tried.append(slot.device)
                jobs += self._run_on(slot.device)
        return jobs

    def run_without_hints(self, _resources: Resources) -> int:
        """Run queued jobs for which this worker may have received no hint; a polling task.

        While the broker is away no hint arrives, and where not every free slot can run every job,
        a hint may have gone to one that cannot. The end of a job on several GPUs frees more slots
        than one thread fills.
        """
        if OUTAGES.lasts(BROKER) or (self._has_free() and fleet.is_selective(self._resources)):
            return self.run_queued()
        return 0

    def _run_on(self, device: Device) -> int:
        """Run jobs on slots of equal devices, one after the other; return how many."""
        jobs = 0
        while not self._stopping.is_set() and (claim := self._claim(device)) is not None:
            job, slots = claim
            try:
                run_job(self._resources, job, self._stopping, slots=slots)
            finally:
                self._release(slots)
            jobs += 1
        return jobs

    def _claim(self, device: Device) -> tuple[JobRecord, tuple[Slot, ...]] | None:
        """Claim a job for free slots on a device and take them; None without slots or jobs."""
        with self._claiming:
            slots = [slot for slot in self._free_slots() if slot.device == device]
            if not slots:
                return None
            slots.sort(key=lambda slot: slot.number)
            total = sum(slot.device == device for slot in self._slots)
            free = FreeSlots(slots=tuple(slots), total=total)
            job = claims.claim_next_job(self._resources, self._owner, free)
            if job is None:
                return None
            taken = free.slots[: job.compression.devices]
            with self._lock:
                for slot in taken:
                    self._free.remove(slot)
            return job, taken

    def _free_slots(self) -> tuple[Slot, ...]:
        with self._lock:
            return tuple(self._free)

    def _has_free(self) -> bool:
        return bool(self._free_slots())

    def _release(self, slots: Sequence[Slot]) -> None:
        with self._lock:
            self._free.extend(slots)
