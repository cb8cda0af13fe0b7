"""Jobs of one project, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from app.adapters.database import jobs as job_rows
from app.domain.comparison import Comparison, compared_job, setting_rows
from app.domain.principal import Principal
from app.services.jobs import existing_job
from app.services.resources import Resources


def compare_jobs(resources: Resources, principal: Principal, job_ids: Sequence[str]) -> Comparison:
    """Settings and results of jobs in any state, in the order they are named.

    Raises:
        JobNotFoundError: if one of them is not there, or not the principal's to see.
    """
    with resources.database.transaction() as transaction:
        found = [existing_job(transaction, principal, job_id) for job_id in job_ids]
        columns = tuple(
            compared_job(job, job_rows.find_report(transaction, job.id)) for job in found
        )
    return Comparison(jobs=columns, settings=setting_rows(found))
