"""Claim and run of the next job, as a worker does for slots that are free."""

from __future__ import annotations

import threading

from app.domain.job import JobRecord
from app.domain.worker import FreeSlots, Slot
from app.services import claims
from app.services.resources import Resources
from workers.child_process import ChildProcess
from workers.runner import StartChild, run_job


def run_next_job(
    resources: Resources,
    owner: str,
    stopping: threading.Event,
    start_child: StartChild = ChildProcess,
    *slots: Slot,
) -> JobRecord | None:
    """Return the job that was run, in its new state; None without one.

    Without slots it is any job, on the default device.
    """
    job = claims.claim_next_job(resources, owner, FreeSlots.of(*slots) if slots else None)
    if job is None:
        return None
    return run_job(resources, job, stopping, start_child, slots[: job.compression.devices])
