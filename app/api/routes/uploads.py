"""/v1/uploads: models and texts from clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.api.dependencies import (
    CursorQuery,
    ExpiresQuery,
    LimitQuery,
    Reader,
    ResourcesDep,
    SignatureQuery,
    Writer,
)
from app.api.documentation import problems
from app.api.upload_schemas import UploadCreate
from app.domain.errors import PartRejectedError
from app.domain.identifiers import UPLOAD
from app.domain.resource import decode_cursor
from app.domain.upload import Part, Upload, UploadDetails, UploadList
from app.services import upload_contents, uploads

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], responses=problems(401, 403, 422, 503))
_BYTES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Number = Annotated[int, Path(ge=0, le=2**31)]


@router.post("", status_code=201)
def create_upload(
    body: UploadCreate, resources: ResourcesDep, principal: Writer, response: Response
) -> UploadDetails:
    """Announce files; the response has a URL to PUT each part to, in any order."""
    upload = uploads.create_upload(resources, principal, body.to_domain())
    response.headers["Location"] = upload.urls.self
    return upload


@router.get("")
def list_uploads(
    resources: ResourcesDep, principal: Reader, limit: LimitQuery = 20, after: CursorQuery = None
) -> UploadList:
    """List uploads, newest first."""
    before = decode_cursor(after, UPLOAD)
    return uploads.list_uploads(resources, principal, limit=limit, before=before)


@router.get("/{upload_id}", responses=problems(404))
def get_upload(upload_id: str, resources: ResourcesDep, principal: Reader) -> UploadDetails:
    """Return the state of each part, with fresh links to missing ones if the key may write."""
    return uploads.get_upload(resources, principal, upload_id)


@router.post("/{upload_id}/complete", status_code=202, responses=problems(404, 409))
def complete_upload(
    upload_id: str, resources: ResourcesDep, principal: Writer, background: BackgroundTasks
) -> Upload:
    """Verify the upload; jobs may name it once it is `ready`."""
    upload = uploads.complete_upload(resources, principal, upload_id)
    background.add_task(upload_contents.verify, resources, upload_id)
    return upload


@router.delete("/{upload_id}", status_code=204, responses=problems(404, 409))
def delete_upload(upload_id: str, resources: ResourcesDep, principal: Writer) -> None:
    """Delete an upload and its files, unless a job that has not ended names it."""
    uploads.delete_upload(resources, principal, upload_id)


@router.put(
    "/{upload_id}/parts/{file}/{number}",
    status_code=204,
    responses=problems(404, 409),
    openapi_extra=_BYTES,
)
async def put_part(  # the link's parts
    upload_id: str,
    file: Number,
    number: Number,
    request: Request,
    resources: ResourcesDep,
    expires: ExpiresQuery,
    signature: SignatureQuery,
) -> None:
    """Send a part by its signed link, if uploads go through the API."""
    resources.signer.verify_part(upload_id, file, number, expires, signature)
    part = await run_in_threadpool(uploads.expect_part, resources, upload_id, file, number)
    await resources.store.put_stream(part.key, _exactly(part, request))


async def _exactly(part: Part, request: Request) -> AsyncIterator[bytes]:
    """The body, unless it is longer or shorter than the part."""
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > part.bytes:
                raise PartRejectedError(f"The part has {part.bytes} bytes, more were sent")
            if chunk:
                yield chunk
    except ClientDisconnect as error:
        raise PartRejectedError("The client disconnected before the end of the part") from error
    if received < part.bytes:
        raise PartRejectedError(f"The part has {part.bytes} bytes, {received} were sent")
