"""Places of queued jobs in the one queue of the deployment, in the order of `leases.claim_next`."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import SmallInteger, Text, and_, bindparam, func, or_, select

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import jobs
from app.domain.job import Job
from app.domain.lifecycle import State

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
