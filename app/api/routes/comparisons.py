"""/v1/compare: jobs side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.dependencies import Reader, ResourcesDep
from app.api.documentation import problems
from app.domain.comparison import Comparison
from app.domain.errors import FieldProblem, InvalidRequestError
from app.domain.sweep import FEWEST_COMPARED, MOST_COMPARED
from app.services.comparisons import compare_jobs

router = APIRouter(prefix="/v1/compare", tags=["jobs"], responses=problems(401, 403, 422, 503))

JobsQuery = Annotated[
    str,
    Query(
        max_length=1024,
        description=f"Ids of {FEWEST_COMPARED} to {MOST_COMPARED} different jobs, separated by "
        "commas.",
        examples=["job_01K8Z6X5F0QJ5N9T3V7W1Y2A4C,job_01K8Z6X5F1H2M8R4D6B0S3E5G7"],
    ),
]


@router.get("", responses=problems(404))
def compare(jobs: JobsQuery, resources: ResourcesDep, principal: Reader) -> Comparison:
    """Compare settings, size, quality and speed of jobs."""
    return compare_jobs(resources, principal, _ids(jobs))


def _ids(text: str) -> list[str]:
    ids = text.split(",")
    if len(set(ids)) != len(ids) or not FEWEST_COMPARED <= len(ids) <= MOST_COMPARED:
        problem = FieldProblem(
            pointer="query:jobs",
            code="bad_job_list",
            message=f"give {FEWEST_COMPARED} to {MOST_COMPARED} different job ids",
        )
        raise InvalidRequestError("These jobs cannot be compared", fields=(problem,))
    return ids
