"""The deployment's workers: their registrations, and which queued jobs none of them can run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from app.adapters.database import jobs, workers
from app.adapters.database.engine import Transaction
from app.domain.validation import Caution
from app.domain.worker import (
    DeviceChoice,
    Registration,
    Requirement,
    WaitingCode,
    Worker,
    waiting_reason,
)
from app.services.resources import Resources
from app.telemetry import get_logger

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
    """Remove the registrations of workers whose heartbeats are missing."""
    with resources.database.transaction() as transaction:
        silent = workers.remove_expired(transaction)
        if silent:
            workers.announce_queued(transaction)
    for worker_id in silent:
        _log.warning("worker_silent", silent_worker=worker_id)


def has_gpus(resources: Resources) -> bool:
    """Return whether a live worker has registered a GPU, which not every job fits."""
    with resources.database.transaction() as transaction:
        return any(device.kind == "gpu" for device in workers.live_devices(transaction))


def can_run(resources: Resources, requirement: Requirement) -> bool:
    """Return whether a live worker can run a job with this requirement."""
    with resources.database.transaction() as transaction:
        return waiting_reason(requirement, workers.devices_by_worker(transaction)) is None


def count_waiting(transaction: Transaction) -> dict[WaitingCode, int]:
    """Return the number of queued jobs that no registered worker can run, for each reason."""
    devices = workers.devices_by_worker(transaction)
    counts: Counter[WaitingCode] = Counter()
    for requirement, number in jobs.queued_requirements(transaction):
        reason = waiting_reason(requirement, devices)
        if reason is not None:
            counts[reason.code] += number
    return {code: counts[code] for code in WaitingCode}


def count_devices(transaction: Transaction) -> dict[str, int]:
    """Return the number of registered devices of each kind."""
    kinds = Counter(device.kind for device in workers.live_devices(transaction))
    return {"cpu": kinds["cpu"], "gpu": kinds["gpu"]}


def cautions_of(
    resources: Resources, requirement: Requirement, host_bytes: int | None
) -> list[Caution]:
    """Return warnings about a job that no registered worker can run, or none with enough memory.

    Args:
        resources: the process's resources.
        requirement: what the job requires of a device.
        host_bytes: memory that it needs on a CPU; None if it is not known.
    """
    with resources.database.transaction() as transaction:
        registered = workers.live(transaction, project_id="")
    reason = waiting_reason(requirement, [worker.devices for worker in registered])
    if reason is not None:
        advice = (_ADVICE if requirement.devices == 1 else _ADVICE_FOR_SEVERAL)[reason.code]
        message = f"the job would be queued, {reason.message}; {advice}"
        return [Caution(code="no_suitable_worker", message=message)]
    return _about_memory(requirement, host_bytes, registered)


_ADVICE = {
    WaitingCode.NO_WORKER: "start one with `intraslice worker`",
    WaitingCode.NO_GPU: "start one, or set device to auto or cpu",
    WaitingCode.GPU_DTYPE: "start one, or set dtype or device to auto",
    WaitingCode.GPU_MEMORY: "start one, or set device to auto, which uses a CPU then",
}
_ADVICE_FOR_SEVERAL = _ADVICE | {
    WaitingCode.NO_GPU: "start one, or set devices to 1",
    WaitingCode.GPU_MEMORY: "start one, or set devices to 1 and device to auto",
    WaitingCode.GPU_COUNT: "start one, or lower devices",
}


def _about_memory(
    requirement: Requirement, host_bytes: int | None, registered: Iterable[Worker]
) -> list[Caution]:
    """Return a warning if a job that runs on a CPU needs more memory than any worker's host has."""
    on_gpu = any(device.fits(requirement) for worker in registered for device in worker.devices)
    if host_bytes is None or requirement.device is DeviceChoice.GPU:
        return []
    if requirement.device is DeviceChoice.AUTO and on_gpu:
        return []
    largest = max((worker.host_memory_bytes for worker in registered), default=0)
    if host_bytes <= largest:
        return []
    message = (
        f"the job needs {host_bytes / 1e9:.1f} GB of memory on a CPU, the largest worker has"
        f" {largest / 1e9:.1f} GB: lower batch_size or the calibration tokens"
    )
    return [Caution(code="memory_short", message=message)]
