"""/v1/archives: a ZIP of all files of a job, by a signed link."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import Response

from app.adapters.signed_urls import ARCHIVES
from app.api.dependencies import ExpiresQuery, ResourcesDep, SignatureQuery
from app.api.documentation import problems
from app.api.streamed_files import StreamedBody
from app.services import archives

router = APIRouter(prefix=ARCHIVES, tags=["downloads"])
_ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {}}}}


@router.get(
    "/{job_id}.zip", response_class=Response, responses=problems(403, 404, 410, 422, 503) | _ZIP
)
def archive(
    job_id: str,
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
    return StreamedBody(archive_stream.chunks, headers=headers, media_type="application/zip")
