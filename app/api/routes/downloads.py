"""/v1/downloads: files by signed links."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from app.adapters.signed_urls import DOWNLOADS
from app.api.dependencies import ExpiresQuery, ResourcesDep, SignatureQuery
from app.api.documentation import problems
from app.services import jobs

router = APIRouter(prefix=DOWNLOADS, tags=["downloads"])
_REDIRECT_SECONDS = 60
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@router.get(
    "/{job_id}/{name:path}",
    response_class=Response,
    responses=problems(403, 404, 410, 422, 503) | _FILE,
)
@router.head("/{job_id}/{name:path}", include_in_schema=False)
def download(
    job_id: str,
    name: str,
    request: Request,
    resources: ResourcesDep,
    expires: ExpiresQuery,
    signature: SignatureQuery,
) -> Response:
    """Download a file; ranges are supported."""
    resources.signer.verify(job_id, name, expires, signature)
    artifact = jobs.get_artifact(resources, job_id, name)
    path = resources.store.local_path(artifact.key)
    if path is None:
        method: Literal["GET", "HEAD"] = "HEAD" if request.method == "HEAD" else "GET"
        url = resources.store.presigned_url(artifact.key, _REDIRECT_SECONDS, method)
        return RedirectResponse(url, status_code=307)
    file_name = PurePosixPath(name).name
    return FileResponse(path, media_type=artifact.media_type, filename=file_name)
