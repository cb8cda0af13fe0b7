"""Conditions under which a free slot of a worker takes queued work, as SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, false, func, or_, select, true

from app.adapters.database import workers
from app.adapters.database.capability import can_run, fits_host, runs_on
from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs
from app.domain.lifecycle import LEASED
from app.domain.worker import Device, Slot


def claim_conditions(
    transaction: Transaction, owner: str, slot: Slot | None, devices: ColumnElement[int]
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the conditions that the slot can run a job, and that its host has room for it now.

    Args:
        transaction: the transaction of the claim.
        owner: name of the worker.
        slot: the free slot; None can run any job, as workers do that have registered no devices.
        devices: number of devices that the work needs: a prompt needs one, whatever its job took.
    """
    if slot is None:
        return true(), true()
    if slot.device.kind == "cpu":
        total = slot.device.memory_bytes
        capable = can_run(slot.device, (), total, devices)
        if slot.device.jobs_at_once == 1:
            return capable, true()
        return capable, fits_host(total - _host_bytes_in_use(transaction, owner, ()))
    # Only a GPU asks which devices the other workers have.
    registered = workers.live_registrations(transaction)
    own = next((worker for worker in registered if worker.id == owner), None)
    # A worker that has yet to register takes no job that needs the memory of its host.
    free = 0
    if own is not None:
        free = own.host_memory_bytes - _host_bytes_in_use(transaction, owner, own.devices)
    # A GPU is not left idle for a job that would run on its host's CPU.
    return can_run(slot.device, registered, free, devices), true()


def _host_bytes_in_use(transaction: Transaction, owner: str, devices: Sequence[Device]) -> int:
    """Return the host memory of the worker's running jobs, without those that run on its GPUs.

    Until the transaction ends, claims of the worker's other slots wait: they would find the same
    memory free.
    """
    transaction.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(owner, 0))))
    on_gpus = [
        and_(jobs.c.device_number == number, runs_on(device))
        for number, device in enumerate(devices)
        if device.kind == "gpu"
    ]
    query = select(func.sum(jobs.c.host_bytes)).where(
        jobs.c.lease_owner == owner, jobs.c.state.in_(LEASED), ~or_(false(), *on_gpus)
    )
    return int(transaction.scalar(query) or 0)
