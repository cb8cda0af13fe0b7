"""/v1/service: status of the service."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import Reader, ResourcesDep
from app.api.documentation import problems
from app.domain.service import Service
from app.services.monitoring import service_status

router = APIRouter(prefix="/v1/service", tags=["service"], responses=problems(401, 403, 503))


@router.get("")
def show_service(resources: ResourcesDep, principal: Reader) -> Service:
    """Return the caller's project and scopes, the load of the service, and its workers."""
    return service_status(resources, principal)
