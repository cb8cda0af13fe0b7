"""The one queue of the deployment, in the order of `leases.claim_next`, and the jobs before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import BigInteger, Float, SmallInteger, Text, and_, bindparam, func, or_, select

from app.adapters.database.capability import DEVICES
from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs
from app.domain.job import Job
from app.domain.lifecycle import LEASED, State
from app.domain.worker import ANY_DTYPE, DeviceChoice, RequiredMemory, Requirement

_LEAST = bindparam("least_priority", type_=SmallInteger)
_UP_TO = or_(
    jobs.c.priority > _LEAST,
    and_(jobs.c.priority == _LEAST, jobs.c.id <= bindparam("last_id", type_=Text)),
)
_IN_LINE = (
    select(
        jobs.c.id,
        func.row_number().over(order_by=(jobs.c.priority.desc(), jobs.c.id)).label("place"),
    )
    .where(jobs.c.state == State.QUEUED, _UP_TO)
    .subquery()
)
# Built once: every reading of a queued job runs it, over the index `ix_jobs_next` up to that job.
_PLACES = select(_IN_LINE.c.id, _IN_LINE.c.place).where(
    _IN_LINE.c.id.in_(bindparam("job_ids", expanding=True))
)


def positions(transaction: Transaction, records: Iterable[Job]) -> dict[str, int]:
    """Return the places of the queued ones among the jobs, from 1, by id.

    Queued jobs of all projects count, whichever device they need: only their number is revealed.
    """
    queued = [record for record in records if record.state is State.QUEUED]
    if not queued:
        return {}
    last = max(queued, key=lambda job: (-job.priority, job.id))
    values = {
        "least_priority": last.priority,
        "last_id": last.id,
        "job_ids": [job.id for job in queued],
    }
    return {row.id: row.place for row in transaction.execute(_PLACES, values)}


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """Queued jobs of all projects that would start before a new one."""

    jobs: int
    on_several_devices: int
    """Those that need more than one device."""
    host_bytes: int
    """Sum of the memory that they need on hosts whose CPUs run them."""


@dataclass(frozen=True, kw_only=True)
class Occupant:
    """A job that a worker runs now."""

    project_id: str
    seconds_left: float | None
    """Estimate of its worker; None while it is not known."""
    worker: str
    """Owner of its lease."""
    devices: tuple[int, ...]
    """Positions of its devices in the worker's registration."""
    requirement: Requirement


def ahead_of(transaction: Transaction, priority: int) -> Ahead:
    """Return the queued jobs that would start before a new one of this priority."""
    query = select(
        func.count(),
        func.count().filter(DEVICES > 1),
        func.coalesce(func.sum(jobs.c.host_bytes), 0).cast(BigInteger),
    ).where(jobs.c.state == State.QUEUED, jobs.c.priority >= priority)
    number, wide, host_bytes = transaction.execute(query).one()
    return Ahead(jobs=number, on_several_devices=wide, host_bytes=host_bytes)


def running(transaction: Transaction) -> list[Occupant]:
    """Return the jobs of all projects whose workers have a valid lease."""
    eta = jobs.c.progress["eta_seconds"].astext.cast(Float).label("seconds_left")
    query = select(
        jobs.c.project_id,
        eta,
        jobs.c.lease_owner,
        func.coalesce(jobs.c.device_number, 0).label("first_device"),
        jobs.c.further_device_numbers,
        func.coalesce(jobs.c.compression["device"].astext, DeviceChoice.AUTO).label("device"),
        func.coalesce(jobs.c.compression["dtype"].astext, ANY_DTYPE).label("dtype"),
        DEVICES.label("devices"),
        jobs.c.gpu_bytes,
        jobs.c.host_bytes,
    ).where(jobs.c.state.in_(LEASED), jobs.c.lease_expires_at > func.now())
    return [
        Occupant(
            project_id=row.project_id,
            seconds_left=row.seconds_left,
            worker=row.lease_owner,
            devices=(row.first_device, *(row.further_device_numbers or ())),
            requirement=Requirement.named(
                row.device,
                row.dtype,
                row.devices,
                memory=RequiredMemory(gpu_bytes=row.gpu_bytes, host_bytes=row.host_bytes),
            ),
        )
        for row in transaction.execute(query)
    ]
