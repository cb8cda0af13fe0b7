"""/v1/models: sources that jobs may name, and compressed models."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import CursorQuery, LimitQuery, Reader, ResourcesDep
from app.api.documentation import problems
from app.domain.model_catalogue import ModelList
from app.domain.resource import decode_cursor
from app.services import models

router = APIRouter(prefix="/v1/models", tags=["models"], responses=problems(401, 403, 422, 503))


@router.get("")
def list_models(
    resources: ResourcesDep, principal: Reader, limit: LimitQuery = 20, after: CursorQuery = None
) -> ModelList:
    """List the sources that jobs may name, and the project's compressed models."""
    return models.list_models(resources, principal, limit=limit, before=decode_cursor(after))
