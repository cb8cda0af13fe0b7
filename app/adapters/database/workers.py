"""Rows of `workers`: registrations, which expire unless their workers extend them.

The database's clock decides, because the clocks of the machines may differ.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Row, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.notifications import announcement
from app.adapters.database.tables import jobs, workers
from app.domain.lifecycle import LEASED, State
from app.domain.worker import Device, Registration, RunningJob, Worker

_LIVE = workers.c.expires_at > func.now()
_REGISTRATIONS = select(
    workers.c.id, workers.c.version, workers.c.host_memory_bytes, workers.c.devices
).where(_LIVE)
_NO_JOBS = {"jobs"}
"""Fields of a device that its worker does not register."""
# Half of what is left, so a third of the time for which a heartbeat counts: two are missing.
_ELAPSED = func.now() - workers.c.seen_at
_SILENT = workers.c.expires_at - func.now() < _ELAPSED + _ELAPSED
_LISTED = (*workers.c, _SILENT.label("silent"))


def register(transaction: Transaction, registration: Registration, expiry_seconds: float) -> bool:
    """Insert the registration, or extend it; return whether the worker was not live before."""
    was_live = transaction.scalar(select(_LIVE).where(workers.c.id == registration.id))
    values: dict[str, Any] = {
        "version": registration.version,
        "host_memory_bytes": registration.host_memory_bytes,
        "devices": [
            device.model_dump(mode="json", exclude=_NO_JOBS) for device in registration.devices
        ],
        "seen_at": func.now(),
        "expires_at": func.now() + timedelta(seconds=expiry_seconds),
    }
    statement = insert(workers).values(id=registration.id, **values)
    transaction.execute(statement.on_conflict_do_update(index_elements=[workers.c.id], set_=values))
    return not was_live


def unregister(transaction: Transaction, worker_id: str) -> bool:
    """Remove a registration; return whether there was one."""
    return transaction.execute(delete(workers).where(workers.c.id == worker_id)).rowcount == 1


def remove_expired(transaction: Transaction) -> list[str]:
    """Remove expired registrations and return the ids of their workers."""
    expired = delete(workers).where(workers.c.expires_at <= func.now()).returning(workers.c.id)
    return list(transaction.scalars(expired))


def announce_queued(transaction: Transaction) -> None:
    """Notify the watchers of queued jobs, whose reason to wait may have changed."""
    transaction.execute(select(announcement(jobs.c.id)).where(jobs.c.state == State.QUEUED))


def live_registrations(transaction: Transaction) -> tuple[Registration, ...]:
    """Return the registrations of all live workers."""
    return tuple(
        Registration(
            id=row.id,
            version=row.version,
            host_memory_bytes=row.host_memory_bytes,
            devices=tuple(Device.model_validate(device) for device in row.devices),
        )
        for row in transaction.execute(_REGISTRATIONS)
    )


def live(transaction: Transaction, project_id: str) -> tuple[Worker, ...]:
    """Return the live workers with their running jobs; those of other projects without details."""
    query = select(*_LISTED).where(_LIVE).order_by(workers.c.started_at)
    rows = transaction.execute(query).all()
    running = _running(transaction, project_id)
    return tuple(_worker(row, running) for row in rows)


def _running(transaction: Transaction, project_id: str) -> dict[tuple[str, int], list[RunningJob]]:
    """Return the jobs with a valid lease, by worker and number of each of their devices."""
    query = (
        select(
            jobs.c.id,
            jobs.c.project_id,
            jobs.c.state,
            jobs.c.stage,
            jobs.c.progress,
            jobs.c.claimed_at,
            jobs.c.lease_owner,
            func.coalesce(jobs.c.device_number, 0).label("device_number"),
            jobs.c.further_device_numbers,
        )
        .where(jobs.c.state.in_(LEASED), jobs.c.lease_expires_at > func.now())
        .order_by(jobs.c.claimed_at)
    )
    running: dict[tuple[str, int], list[RunningJob]] = {}
    for row in transaction.execute(query):
        job = _running_job(row, own=row.project_id == project_id)
        running.setdefault((row.lease_owner, row.device_number), []).append(job)
        # Its memory is shown once.
        further = job.model_copy(update={"memory_bytes": None, "gpu_memory_bytes": None})
        for number in row.further_device_numbers or ():
            running.setdefault((row.lease_owner, number), []).append(further)
    return running


def _running_job(row: Any, *, own: bool) -> RunningJob:
    progress = (row.progress or {}) if own else {}
    return RunningJob(
        job_id=row.id if own else None,
        state=row.state,
        stage=row.stage if own else None,
        fraction=progress.get("fraction"),
        memory_bytes=progress.get("memory_bytes"),
        gpu_memory_bytes=progress.get("gpu_memory_bytes"),
        claimed_at=row.claimed_at if own else None,
    )


def _worker(row: Row[Any], running: dict[tuple[str, int], list[RunningJob]]) -> Worker:
    devices = [
        Device.model_validate(device | {"jobs": running.get((row.id, number), [])})
        for number, device in enumerate(row.devices)
    ]
    return Worker.model_validate({**row._mapping, "devices": devices})
