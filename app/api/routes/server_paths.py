"""/v1/server-paths: directories of the server that jobs may name."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.dependencies import LimitQuery, Reader, ResourcesDep
from app.api.documentation import problems
from app.domain.resource import decode_name
from app.domain.server_path import PathList, PathUse
from app.services import server_paths

router = APIRouter(
    prefix="/v1/server-paths", tags=["models"], responses=problems(401, 403, 404, 422, 503)
)


@router.get("")
def list_server_paths(
    resources: ResourcesDep,
    _principal: Reader,
    use: Annotated[PathUse, Query(description="What the paths are for.")] = PathUse.MODEL,
    path: Annotated[
        str | None,
        Query(max_length=4096, description="Directory to list; without it, all allowed ones."),
    ] = None,
    limit: LimitQuery = 20,
    after: Annotated[
        str | None, Query(max_length=512, description="`next_cursor` of the previous page.")
    ] = None,
) -> PathList:
    """List one level of the directories that jobs may name, by name, with models and texts marked.

    A page may have fewer entries than `limit`: what no job can use is left out. The directories
    are those of the API server; workers on other machines must have the same ones.
    """
    return server_paths.list_paths(
        resources.settings, use, path, after=decode_name(after), limit=limit
    )
