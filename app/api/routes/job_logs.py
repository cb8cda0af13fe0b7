"""/v1/jobs/{id}/logs."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Response

from app.api.dependencies import Reader, ResourcesDep
from app.api.documentation import problems
from app.api.negotiation import JSON, PLAIN, preferred
from app.domain.events import LAST_SEQUENCE
from app.domain.job_log import LogLevel, LogLineList, line_text
from app.services.job_log import list_lines

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(401, 403, 422, 503))
_EXAMPLE = """2026-03-01T12:00:00.000Z INFO     attempt=1 step message="reading text"
"""
_SHOWN: dict[int | str, dict[str, Any]] = {
    200: {"content": {PLAIN: {"schema": {"type": "string"}, "example": _EXAMPLE}}}
}


@router.get("/{job_id}/logs", response_model=LogLineList, responses=problems(404, 406) | _SHOWN)
def list_logs(
    job_id: str,
    resources: ResourcesDep,
    principal: Reader,
    accept: Annotated[str | None, Header(max_length=4096)] = None,
    after: Annotated[
        int, Query(ge=0, le=LAST_SEQUENCE, description="Begin after this `sequence`.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    level: Annotated[
        LogLevel, Query(description="Least severe level of the lines.")
    ] = LogLevel.DEBUG,
) -> Response:
    """Read the log of a job's engine process, as JSON or as plain text, oldest line first.

    The newest lines of all attempts are stored, without secrets and local paths, until the job's
    artifacts expire. `sequence` is one order with the job's events. The `Link` header names the
    next part, if there is one.
    """
    media_type = preferred(accept, (JSON, PLAIN))
    lines = list_lines(resources, principal, job_id, after=after, limit=limit, level=level)
    headers = {"Vary": "Accept", "Cache-Control": "private, no-cache"}
    if lines.has_more:
        query = urlencode({"after": lines.data[-1].sequence, "limit": limit, "level": level.value})
        headers["Link"] = f'</v1/jobs/{job_id}/logs?{query}>; rel="next"'
    if media_type == JSON:
        return Response(lines.model_dump_json(), media_type=JSON, headers=headers)
    text = "".join(f"{line_text(line)}\n" for line in lines.data)
    return Response(text, media_type=f"{PLAIN}; charset=utf-8", headers=headers)
