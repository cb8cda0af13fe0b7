"""Slots of a worker: each runs one job at a time, woken by a hint or by the worker's own look."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from app.domain.worker import Device, Slot
from app.services import fleet
from app.services.resources import Resources
from app.telemetry.outages import BROKER, OUTAGES
from workers.runner import run_next_job


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
        self._free = list(slots)
        self._lock = threading.Lock()

    def run_queued(self) -> int:
        """Run the most urgent jobs on each free device while it can run any; return how many.

        Without a free slot nothing is to be done: the busy ones look for further jobs themselves.
        """
        jobs = 0
        tried: list[Device] = []
        while (slot := self._take(tried)) is not None:
            tried.append(slot.device)
            try:
                jobs += self._run_on(slot)
            finally:
                self._release(slot)
        return jobs

    def run_without_hints(self, _resources: Resources) -> int:
        """Run queued jobs for which this worker may have received no hint; a polling task.

        While the broker is away no hint arrives, and where not every free slot can run every job,
        a hint may have gone to one that cannot.
        """
        if OUTAGES.lasts(BROKER) or (self._has_free() and fleet.is_selective(self._resources)):
            return self.run_queued()
        return 0

    def _run_on(self, slot: Slot) -> int:
        jobs = 0
        while not self._stopping.is_set() and run_next_job(
            self._resources, self._owner, self._stopping, slot=slot
        ):
            jobs += 1
        return jobs

    def _has_free(self) -> bool:
        with self._lock:
            return bool(self._free)

    def _take(self, tried: Sequence[Device]) -> Slot | None:
        """Return a free slot of a device unlike those that have just found no job."""
        with self._lock:
            for position, slot in enumerate(self._free):
                if slot.device not in tried:
                    return self._free.pop(position)
        return None

    def _release(self, slot: Slot) -> None:
        with self._lock:
            self._free.append(slot)
