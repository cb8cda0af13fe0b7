"""Slots of a worker: each runs one job at a time, woken by a hint or by the worker's own look."""

from __future__ import annotations

import threading

from app.services.resources import Resources
from app.telemetry.outages import BROKER, OUTAGES
from workers.runner import run_next_job


class JobSlots:
    """As many jobs at once as `worker_concurrency` allows, whoever starts them.

    Args:
        resources: the process's resources.
        owner: this worker's name, for leases.
        stopping: set when the worker stops; running jobs then return to the queue.
    """

    def __init__(self, resources: Resources, owner: str, stopping: threading.Event) -> None:
        self._resources = resources
        self._owner = owner
        self._stopping = stopping
        self._free = threading.Semaphore(resources.settings.worker_concurrency)

    def run_queued(self) -> int:
        """Run the most urgent jobs while any are queued; return how many.

        Without a free slot nothing is to be done: the busy ones look for further jobs themselves.
        """
        if not self._free.acquire(blocking=False):
            return 0
        jobs = 0
        try:
            while not self._stopping.is_set() and run_next_job(
                self._resources, self._owner, self._stopping
            ):
                jobs += 1
        finally:
            self._free.release()
        return jobs

    def run_without_hints(self, _resources: Resources) -> int:
        """Run queued jobs while the broker is away and no hint can arrive; a polling task."""
        return self.run_queued() if OUTAGES.lasts(BROKER) else 0
