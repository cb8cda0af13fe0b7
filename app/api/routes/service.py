"""/v1/service: the service at a glance."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import Reader, ResourcesDep
from app.api.documentation import problems
from app.domain.service import Service
from app.services.monitoring import service_status

router = APIRouter(prefix="/v1/service", tags=["service"], responses=problems(401, 403, 503))


@router.get("")
def show_service(resources: ResourcesDep, principal: Reader) -> Service:
    """Show who asks, and how much there is to do."""
    return service_status(resources, principal)
