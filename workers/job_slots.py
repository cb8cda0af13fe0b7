"""Slots of a worker: each runs one job at a time, woken by a hint or by the worker's own look.

While no job is queued that a slot can run, it runs prompts of the playground.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from app.domain.worker import Device, Slot
from app.services import fleet, generation_claims
from app.services.resources import Resources
from app.telemetry.outages import BROKER, OUTAGES
from workers.generation_runner import run_next_generation
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
        """Run jobs, and then prompts, on each free device while it can run any; return how many.

        Without a free slot nothing is to be done: the busy ones look for further jobs themselves.
        """
        done = 0
        tried: list[Device] = []
        while (slot := self._take(tried)) is not None:
            tried.append(slot.device)
            try:
                done += self._run_on(slot)
            finally:
                self._release(slot)
        return done

    def run_without_hints(self, _resources: Resources) -> int:
        """Run queued jobs for which this worker may have received no hint; a polling task.

        While the broker is away no hint arrives, and where not every free slot can run every job,
        a hint may have gone to one that cannot. A prompt may have been queued again while every
        slot was busy with jobs.
        """
        if OUTAGES.lasts(BROKER) or (self._has_free() and self._may_have_missed_hints()):
            return self.run_queued()
        return 0

    def _may_have_missed_hints(self) -> bool:
        resources = self._resources
        if fleet.is_selective(resources):
            return True
        return resources.settings.playground and generation_claims.has_queued(resources)

    def _run_on(self, slot: Slot) -> int:
        done = 0
        while not self._stopping.is_set() and self._run_one(slot):
            done += 1
        return done

    def _run_one(self, slot: Slot) -> bool:
        """Run a job, or a prompt where no job is queued; return whether there was one."""
        work = (self._resources, self._owner, self._stopping)
        return run_next_job(*work, slot=slot) is not None or run_next_generation(*work, slot=slot)

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
