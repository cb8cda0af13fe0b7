"""/v1/archives: a ZIP of all files of a job, by a signed link."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from app.adapters.signed_urls import ARCHIVES
from app.api.dependencies import ExpiresQuery, ResourcesDep, SignatureQuery
from app.api.documentation import problems
from app.services import archives

router = APIRouter(prefix=ARCHIVES, tags=["downloads"])
_ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {}}}}


@router.get(
    "/{job_id}.zip", response_class=Response, responses=problems(403, 404, 410, 422, 503) | _ZIP
)
@router.head("/{job_id}.zip", include_in_schema=False)
def archive(
    job_id: str,
    request: Request,
    resources: ResourcesDep,
    expires: ExpiresQuery,
    signature: SignatureQuery,
) -> Response:
    """Download all files in one ZIP; unlike single files, it does not support ranges."""
    resources.signer.verify_archive(job_id, expires, signature)
    archive_stream = archives.open_archive(resources, job_id)
    headers = {
        "Accept-Ranges": "none",
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(archive_stream.name)}",
        "Content-Length": str(archive_stream.size),
    }
    if request.method == "HEAD":
        return Response(headers=headers, media_type="application/zip")
    return StreamingResponse(archive_stream.chunks, headers=headers, media_type="application/zip")
