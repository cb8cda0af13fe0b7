"""/v1/jobs/{id}/hand-offs: registry hand-offs of a job's checkpoint."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import Reader, ResourcesDep, Writer
from app.api.documentation import problems
from app.api.hand_off_schemas import HandOffCreate
from app.domain.registry_hand_off import HandOff, HandOffList
from app.services import registry_hand_offs

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(401, 403, 422, 503))


@router.get("/{job_id}/hand-offs", responses=problems(404))
def list_hand_offs(job_id: str, resources: ResourcesDep, principal: Reader) -> HandOffList:
    """List the registry hand-offs of a job's checkpoint, with their states, and the targets."""
    return registry_hand_offs.list_hand_offs(resources, principal, job_id)


@router.post("/{job_id}/hand-offs", status_code=202, responses=problems(404, 409, 410))
def create_hand_off(
    job_id: str, body: HandOffCreate, resources: ResourcesDep, principal: Writer
) -> HandOff:
    """Hand off a succeeded job's checkpoint to a registry or hub, also once more."""
    return registry_hand_offs.request_hand_off(resources, principal, job_id, body.target, body.name)
