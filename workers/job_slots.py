"""Slots of a worker: each runs one job at a time, woken by a hint or by the worker's own look.

A job on several GPUs takes as many slots on equal ones. While the most urgent job needs more of
them than are free, none of them starts another: otherwise shorter jobs would always come first.
While no job is queued that a slot can run, it runs prompts of the playground.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from app.domain.job import JobRecord
from app.domain.worker import Device, FreeSlots, Slot
from app.services import claims, fleet, generation_claims
from app.services.generation_claims import ClaimedGeneration
from app.services.resources import Resources
from app.telemetry.outages import BROKER, OUTAGES
from workers.generation_runner import run_generation
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
        """Run jobs, and then prompts, on each kind of device while it can; return how many.

        Without a free slot nothing is to be done: the busy ones look for further jobs themselves.
        """
        done = 0
        tried: list[Device] = []
        for slot in self._slots:
            if slot.device not in tried:
                tried.append(slot.device)
                done += self._run_on(slot.device)
        return done

    def run_without_hints(self, _resources: Resources) -> int:
        """Run queued jobs for which this worker may have received no hint; a polling task.

        While the broker is away no hint arrives, and where not every free slot can run every job,
        a hint may have gone to one that cannot. The end of a job on several GPUs frees more slots
        than one thread fills. A prompt may have been queued again while every slot was busy with
        jobs.
        """
        if OUTAGES.lasts(BROKER) or (self._has_free() and self._may_have_missed_hints()):
            return self.run_queued()
        return 0

    def _may_have_missed_hints(self) -> bool:
        resources = self._resources
        if fleet.is_selective(resources):
            return True
        return resources.settings.playground and generation_claims.has_queued(resources)

    def _run_on(self, device: Device) -> int:
        """Run jobs and prompts on slots of equal devices, one after the other; return how many."""
        done = 0
        while not self._stopping.is_set() and (claim := self._claim(device)) is not None:
            work, slots = claim
            try:
                if isinstance(work, JobRecord):
                    run_job(self._resources, work, self._stopping, slots=slots)
                else:
                    run_generation(self._resources, work, self._stopping, slots=self._of(slots))
            finally:
                self._release(slots)
            done += 1
        return done

    def _claim(
        self, device: Device
    ) -> tuple[JobRecord | ClaimedGeneration, tuple[Slot, ...]] | None:
        """Claim work for free slots on a device and take them; None without slots or work."""
        with self._claiming:
            slots = [slot for slot in self._free_slots() if slot.device == device]
            if not slots:
                return None
            free = self._of(sorted(slots, key=lambda slot: slot.number))
            work = claims.claim_next_job(
                self._resources, self._owner, free
            ) or generation_claims.claim_next_generation(self._resources, self._owner, free)
            if work is None:
                return None
            count = work.compression.devices if isinstance(work, JobRecord) else 1
            taken = free.slots[:count]
            with self._lock:
                for slot in taken:
                    self._free.remove(slot)
            return work, taken

    def _of(self, slots: Sequence[Slot]) -> FreeSlots:
        """Return slots on equal devices for a claim."""
        total = sum(slot.device == slots[0].device for slot in self._slots)
        return FreeSlots(slots=tuple(slots), total=total)

    def _free_slots(self) -> tuple[Slot, ...]:
        with self._lock:
            return tuple(self._free)

    def _has_free(self) -> bool:
        return bool(self._free_slots())

    def _release(self, slots: Sequence[Slot]) -> None:
        with self._lock:
            self._free.extend(slots)
