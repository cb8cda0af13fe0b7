"""/v1/jobs:validate: validation and estimates of a job."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import Reader, ResourcesDep
from app.api.documentation import problems
from app.api.schemas import JobCreate
from app.domain.validation import Validation
from app.services.estimates import validate_job

router = APIRouter(prefix="/v1", tags=["jobs"], responses=problems(401, 403, 422, 503))


@router.post("/jobs:validate")
def validate(body: JobCreate, resources: ResourcesDep, principal: Reader) -> Validation:
    """Check a job and estimate it; nothing is queued."""
    return validate_job(resources, principal, body.to_domain())
