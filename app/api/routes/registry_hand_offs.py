"""/v1/jobs/{id}/hand-offs: registry hand-offs of a job's checkpoint."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import Reader, ResourcesDep
from app.api.documentation import problems
from app.domain.registry_hand_off import HandOffList
from app.services import registry_hand_offs

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(401, 403, 422, 503))


@router.get("/{job_id}/hand-offs", responses=problems(404))
def list_hand_offs(job_id: str, resources: ResourcesDep, principal: Reader) -> HandOffList:
    """List the registry hand-offs of a job's checkpoint, with their states."""
    return registry_hand_offs.list_hand_offs(resources, principal, job_id)
