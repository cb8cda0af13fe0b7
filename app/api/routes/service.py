"""/v1/service: the service at a glance."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import Reader, ResourcesDep
from app.api.documentation import problems
from app.api.service_schemas import ServiceOut
from app.services.monitoring import overview

router = APIRouter(prefix="/v1/service", tags=["service"], responses=problems(401, 403, 503))


@router.get("")
def show_service(resources: ResourcesDep, principal: Reader) -> ServiceOut:
    """Show who asks, and how much there is to do."""
    return ServiceOut.of(overview(resources, principal), principal)
