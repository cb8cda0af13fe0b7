"""Comparison of jobs of one project."""

from __future__ import annotations

from collections.abc import Sequence

from app.adapters.database import jobs as job_rows
from app.domain.comparison import Comparison, compared_job, compared_settings
from app.domain.principal import Principal
from app.services.jobs import existing_job
from app.services.resources import Resources


def compare_jobs(resources: Resources, principal: Principal, job_ids: Sequence[str]) -> Comparison:
    """Return settings and results of jobs in any state, in the given order.

    Raises:
        JobNotFoundError: if one of them does not exist or is another project's.
    """
    with resources.database.transaction() as transaction:
        compared = [existing_job(transaction, principal, job_id) for job_id in job_ids]
        columns = tuple(
            compared_job(job, job_rows.find_report(transaction, job.id)) for job in compared
        )
    return Comparison(jobs=columns, settings=compared_settings(compared))
