"""Claim and run of the next job or prompt, as a worker does for slots that are free."""

from __future__ import annotations

import threading

from app.domain.job import JobRecord
from app.domain.worker import FreeSlots, Slot
from app.services import claims, generation_claims
from app.services.resources import Resources
from workers.child_process import ChildProcess
from workers.generation_runner import StartProcess, run_generation
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


def run_next_generation(
    resources: Resources,
    owner: str,
    stopping: threading.Event,
    start: StartProcess,
    slot: Slot,
) -> bool:
    """Return whether there was a generation, which has been run."""
    free = FreeSlots.of(slot)
    claimed = generation_claims.claim_next_generation(resources, owner, free)
    if claimed is None:
        return False
    run_generation(resources, claimed, stopping, start, free)
    return True
