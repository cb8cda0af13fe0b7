"""The deployment's workers: their registrations, and which queued jobs none of them can run."""

from __future__ import annotations

from collections import Counter

from app.adapters.database import jobs, workers
from app.adapters.database.engine import Transaction
from app.domain.validation import Caution
from app.domain.worker import (
    DeviceChoice,
    Registration,
    Requirement,
    WaitingCode,
    waiting_reason,
)
from app.services.resources import Resources
from app.telemetry import get_logger
from app.telemetry.outages import DATABASE, OUTAGES

_MISSED_HEARTBEATS = 6
"""Heartbeats that a worker may miss before its registration expires."""
_log = get_logger(__name__)


def expiry_seconds(resources: Resources) -> float:
    """Return the time for which a heartbeat of this process keeps a registration."""
    return _MISSED_HEARTBEATS * resources.settings.maintenance_seconds


def register(resources: Resources, registration: Registration) -> None:
    """Register a worker, or extend its registration."""
    with resources.database.transaction() as transaction:
        if workers.register(transaction, registration, expiry_seconds(resources)):
            workers.announce_queued(transaction)


def unregister(resources: Resources, worker_id: str) -> None:
    """Remove a worker that is shutting down."""
    with resources.database.transaction() as transaction:
        if workers.unregister(transaction, worker_id):
            workers.announce_queued(transaction)


def remove_silent(resources: Resources) -> None:
    """Remove the registrations of workers whose heartbeats are missing.

    After an outage of the database they are missing because of it: until every worker has had the
    usual time to renew its registration, none is removed.
    """
    if OUTAGES.lasted_within(DATABASE, expiry_seconds(resources)):
        return
    with resources.database.transaction() as transaction:
        silent = workers.remove_expired(transaction)
        if silent:
            workers.announce_queued(transaction)
    for worker_id in silent:
        _log.warning("worker_silent", silent_worker=worker_id)


def is_selective(resources: Resources) -> bool:
    """Return whether a free slot of a live worker may have to leave a job to others or for later.

    So it is with GPUs, with hosts of several sizes, and where several jobs share a host: when one
    leaves its memory, its slot takes one of the jobs that have room then.
    """
    with resources.database.transaction() as transaction:
        registered = workers.live_registrations(transaction)
    devices = [device for worker in registered for device in worker.devices]
    return (
        any(device.kind == "gpu" for device in devices)
        or len({worker.host_memory_bytes for worker in registered}) > 1
        or any(device.jobs_at_once > 1 for device in devices)
    )


def name_of_gpu(resources: Resources, requirement: Requirement) -> str | None:
    """Return the name of a live GPU that would run a job; None if a CPU runs it."""
    if requirement.device is DeviceChoice.CPU:
        return None
    with resources.database.transaction() as transaction:
        registered = workers.live_registrations(transaction)
    devices = (device for worker in registered for device in worker.devices)
    return next((device.name for device in devices if device.fits(requirement)), None)


def can_run(resources: Resources, requirement: Requirement) -> bool:
    """Return whether a live worker can run a job with this requirement."""
    with resources.database.transaction() as transaction:
        return waiting_reason(requirement, workers.live_registrations(transaction)) is None


def count_waiting(transaction: Transaction) -> dict[WaitingCode, int]:
    """Return the number of queued jobs that no registered worker can run, for each reason."""
    registered = workers.live_registrations(transaction)
    counts: Counter[WaitingCode] = Counter()
    for requirement, number in jobs.queued_requirements(transaction):
        reason = waiting_reason(requirement, registered)
        if reason is not None:
            counts[reason.code] += number
    return {code: counts[code] for code in WaitingCode}


def count_devices(transaction: Transaction) -> dict[str, int]:
    """Return the number of registered devices of each kind."""
    registered = workers.live_registrations(transaction)
    kinds = Counter(device.kind for worker in registered for device in worker.devices)
    return {"cpu": kinds["cpu"], "gpu": kinds["gpu"]}


def cautions_of(resources: Resources, requirement: Requirement) -> list[Caution]:
    """Return a warning about a job that no registered worker can run."""
    with resources.database.transaction() as transaction:
        reason = waiting_reason(requirement, workers.live_registrations(transaction))
    if reason is None:
        return []
    advice = (_ADVICE if requirement.devices == 1 else _ADVICE_FOR_SEVERAL)[reason.code]
    message = f"the job would be queued, {reason.message}; {advice}"
    code = "memory_short" if reason.code is WaitingCode.HOST_MEMORY else "no_suitable_worker"
    return [Caution(code=code, message=message)]


_ADVICE = {
    WaitingCode.NO_WORKER: "start one with `intraslice worker`",
    WaitingCode.NO_GPU: "start one, or set device to auto or cpu",
    WaitingCode.GPU_DTYPE: "start one, or set dtype or device to auto",
    WaitingCode.GPU_MEMORY: "start one, or set device to auto, which uses a CPU then",
    WaitingCode.HOST_MEMORY: "start one, or lower batch_size or the calibration tokens",
}
_ADVICE_FOR_SEVERAL = _ADVICE | {
    WaitingCode.NO_GPU: "start one, or set devices to 1",
    WaitingCode.GPU_MEMORY: "start one, or set devices to 1 and device to auto",
    WaitingCode.GPU_COUNT: "start one, or lower devices",
}
