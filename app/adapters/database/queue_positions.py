"""The one queue of the deployment, in the order of `leases.claim_next`, and the jobs before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Float, SmallInteger, Text, and_, bindparam, func, or_, select

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs
from app.domain.job import Job
from app.domain.lifecycle import LEASED, State

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
class Occupant:
    """A job that a worker runs now."""

    project_id: str
    seconds_left: float | None
    """Estimate of its worker; None while it is not known."""
    worker: str
    """Owner of its lease."""
    devices: tuple[int, ...]
    """Positions of its devices in the worker's registration."""


def count_ahead(transaction: Transaction, priority: int) -> int:
    """Return the number of queued jobs of all projects that would start before a new one."""
    query = select(func.count()).where(jobs.c.state == State.QUEUED, jobs.c.priority >= priority)
    return int(transaction.scalar(query) or 0)


def running(transaction: Transaction) -> list[Occupant]:
    """Return the jobs of all projects whose workers have a valid lease."""
    eta = jobs.c.progress["eta_seconds"].astext.cast(Float).label("seconds_left")
    query = select(
        jobs.c.project_id,
        eta,
        jobs.c.lease_owner,
        func.coalesce(jobs.c.device_number, 0).label("first_device"),
        jobs.c.further_device_numbers,
    ).where(jobs.c.state.in_(LEASED), jobs.c.lease_expires_at > func.now())
    return [
        Occupant(
            project_id=row.project_id,
            seconds_left=row.seconds_left,
            worker=row.lease_owner,
            devices=(row.first_device, *(row.further_device_numbers or ())),
        )
        for row in transaction.execute(query)
    ]
