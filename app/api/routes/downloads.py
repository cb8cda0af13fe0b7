"""/v1/downloads: files by signed links."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from app.adapters.signed_urls import DOWNLOADS
from app.api.dependencies import ExpiresQuery, ResourcesDep, SignatureQuery
from app.api.documentation import problems
from app.api.head_requests import is_head
from app.api.streamed_files import entity_tag, stream_file
from app.services import jobs

router = APIRouter(prefix=DOWNLOADS, tags=["downloads"])
_REDIRECT_SECONDS = 60
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@router.get(
    "/{job_id}/{name:path}",
    response_class=Response,
    responses=problems(403, 404, 410, 422, 503) | _FILE,
)
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
    store = resources.store
    path = store.local_path(artifact.key)
    if path is not None:
        file_name = PurePosixPath(name).name
        headers = {"ETag": entity_tag(artifact)}
        return FileResponse(
            path, media_type=artifact.media_type, filename=file_name, headers=headers
        )
    if not store.is_direct:
        return stream_file(request, store, artifact)
    # The signature covers the method.
    method: Literal["GET", "HEAD"] = "HEAD" if is_head(request) else "GET"
    url = store.presigned_url(artifact.key, _REDIRECT_SECONDS, method)
    return RedirectResponse(url, status_code=307)
