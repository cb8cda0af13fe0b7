"""Use cases of uploads: announce files, send their parts, complete, delete and expire.

The row lists the announced files, the store holds the parts that have arrived. A part is an object
of its own, so that it can be sent again, in any order, and directly to a bucket. Files are
assembled on the disk of the worker that uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from app.adapters.database import deployment, uploads
from app.domain.errors import (
    FieldProblem,
    InvalidRequestError,
    UploadIncompleteError,
    UploadInUseError,
    UploadNotFoundError,
    UploadNotOpenError,
    UploadNotReadyError,
)
from app.domain.identifiers import UPLOAD, is_id, new_id
from app.domain.principal import Principal, Scope
from app.domain.upload import (
    Part,
    UploadDetails,
    UploadFileDetails,
    UploadKind,
    UploadList,
    UploadPart,
    UploadRecord,
    UploadRequest,
    UploadState,
    name_problems,
    upload_prefix,
)
from app.services.admission import Locate
from app.services.deployment import may_delete, require_own_store
from app.services.removal import delete_prefix
from app.services.resources import Resources
from app.telemetry import get_logger

_MOST_PARTS = 10_000
_BATCH = 50
_PATIENCE = timedelta(minutes=15)
"""A check that has reported no part for this long has lost its process."""
_log = get_logger(__name__)


def create_upload(
    resources: Resources, principal: Principal, request: UploadRequest
) -> UploadDetails:
    """Record the announced files and return links for sending their parts.

    Raises:
        InvalidRequestError: if a file has a name it may not have, or there is too much.
    """
    settings = resources.settings
    problems = name_problems(request) + _too_large(resources, request)
    with resources.database.transaction() as transaction:
        uploads.lock_quota(transaction, principal.project_id)
        problems += _beyond_quota(
            resources, uploads.usage(transaction, principal.project_id), request
        )
        if problems:
            raise InvalidRequestError("The upload is not allowed", fields=tuple(problems))
        upload = uploads.insert_upload(
            transaction,
            new_id(UPLOAD),
            principal.project_id,
            request,
            part_bytes=settings.upload_part_bytes,
            lifetime=timedelta(hours=settings.upload_open_hours),
            store_prefix=deployment.current(transaction).store_prefix,
        )
    return _details(resources, upload, links=True)


def get_upload(resources: Resources, principal: Principal, upload_id: str) -> UploadDetails:
    """Return the upload with the state of its parts, and fresh links for missing ones."""
    upload = _existing(resources, principal.project_id, upload_id)
    return _details(resources, upload, links=Scope.WRITE in principal.scopes)


def list_uploads(
    resources: Resources, principal: Principal, *, limit: int, before: str | None
) -> UploadList:
    with resources.database.transaction() as transaction:
        page = uploads.newest(transaction, principal.project_id, limit=limit + 1, before=before)
    return UploadList.of(page, limit)


def complete_upload(resources: Resources, principal: Principal, upload_id: str) -> UploadRecord:
    """Begin the check of an upload whose parts are all there. Repeating it is harmless.

    Raises:
        UploadIncompleteError: naming a part that is missing, or is of another size.
        UploadNotOpenError: if it was refused.
    """
    upload = _existing(resources, principal.project_id, upload_id)
    if upload.state in (UploadState.VERIFYING, UploadState.READY):
        return upload
    if upload.state is UploadState.REFUSED:
        raise UploadNotOpenError("The upload was refused; create another")
    _require_complete(resources, upload)
    with resources.database.transaction() as transaction:
        uploads.begin_check(transaction, upload_id)
    return _existing(resources, principal.project_id, upload_id)


def delete_upload(resources: Resources, principal: Principal, upload_id: str) -> None:
    """Delete an upload and its files.

    Raises:
        UploadInUseError: if a job that has not ended names it.
        StoreNotOwnedError: if the store is not provably this deployment's.
    """
    upload = _existing(resources, principal.project_id, upload_id)
    require_own_store(resources)
    with resources.database.transaction() as transaction:
        if not uploads.remove(transaction, upload_id):
            raise UploadInUseError
    discard(resources, upload)


def expect_part(resources: Resources, upload_id: str, file: int, number: int) -> Part:
    """Return the part of a signed link.

    Raises:
        UploadNotFoundError: if there is no such part.
        UploadNotOpenError: if no part is expected any more.
    """
    with resources.database.transaction() as transaction:
        upload = uploads.find(transaction, upload_id) if is_id(UPLOAD, upload_id) else None
    if upload is None or not 0 <= file < len(upload.files):
        raise UploadNotFoundError
    part = next((part for part in upload.parts(file) if part.number == number), None)
    if part is None:
        raise UploadNotFoundError
    if upload.state is not UploadState.OPEN:
        raise UploadNotOpenError
    return part


def locator(resources: Resources, project_id: str) -> Locate:
    """Return a function for `admit` that locates the project's ready uploads."""

    def locate(upload_id: str, kind: UploadKind) -> Path:
        upload = _existing(resources, project_id, upload_id)
        if upload.kind is not kind:
            raise UploadNotFoundError(f"The upload is a {upload.kind}, a {kind} is required")
        if upload.state is not UploadState.READY:
            raise UploadNotReadyError(f"The upload is {upload.state}")
        place = resources.uploads_dir / upload.id
        return place if kind is UploadKind.MODEL else place / upload.files[0].name

    return locate


def discard(resources: Resources, upload: UploadRecord) -> None:
    """Remove an upload's objects from the store."""
    delete_prefix(resources, upload_prefix(upload))


def expire(resources: Resources) -> int:
    """Remove expired uploads, and reopen those whose check was interrupted."""
    with resources.database.transaction() as transaction:
        for upload_id in uploads.reopen_stuck(transaction, _PATIENCE):
            _log.warning("upload_reopened", upload_id=upload_id)
    if not may_delete(resources):
        return 0
    with resources.database.transaction() as transaction:
        waiting = uploads.due(transaction, _BATCH)
    for upload in waiting:
        with resources.database.transaction() as transaction:
            removed = uploads.remove(transaction, upload.id)
        if removed:
            discard(resources, upload)
            _log.info("upload_expired", upload_id=upload.id)
    return len(waiting)


def missing_parts(resources: Resources, upload: UploadRecord) -> Iterator[Part]:
    """Yield the parts that are missing or have another size than announced."""
    there = resources.store.sizes(upload_prefix(upload))
    return (part for part in upload.all_parts() if there.get(part.key) != part.bytes)


def _require_complete(resources: Resources, upload: UploadRecord) -> None:
    first = next(missing_parts(resources, upload), None)
    if first is not None:
        name = upload.files[first.file].name
        raise UploadIncompleteError(
            f"Part {first.number} of {name} is missing or has another length than announced"
        )


def _details(resources: Resources, upload: UploadRecord, *, links: bool) -> UploadDetails:
    """Return the upload with its parts, none of which are listed once it is not open any more."""
    is_open = upload.state is UploadState.OPEN
    missing = {part.key for part in missing_parts(resources, upload)} if is_open else set()

    def described(part: Part) -> UploadPart:
        received = part.key not in missing
        url = None if received or not links else _link(resources, upload, part)
        return UploadPart(number=part.number, bytes=part.bytes, received=received, url=url)

    files = tuple(
        UploadFileDetails(
            name=file.name,
            bytes=file.bytes,
            sha256=file.sha256,
            parts=tuple(described(part) for part in upload.parts(index)) if is_open else (),
        )
        for index, file in enumerate(upload.files)
    )
    return UploadDetails.model_validate(
        {**upload.model_dump(), "part_bytes": upload.part_bytes, "files": files}
    )


def _link(resources: Resources, upload: UploadRecord, part: Part) -> str:
    """Return a link to the bucket if clients reach it, else to the API."""
    seconds = resources.settings.url_expiry_seconds
    if resources.store.is_direct:
        return resources.store.presigned_url(part.key, seconds, "PUT")
    return resources.signer.sign_part(upload.id, part.file, part.number, seconds)


def _too_large(resources: Resources, request: UploadRequest) -> list[FieldProblem]:
    settings = resources.settings
    problems = []
    if request.bytes > settings.max_upload_bytes:
        problems.append(
            _about_files(
                "too_large", f"{request.bytes} bytes, {settings.max_upload_bytes} are allowed"
            )
        )
    parts = sum(-(-file.bytes // settings.upload_part_bytes) for file in request.files)
    if parts > _MOST_PARTS:
        problems.append(_about_files("too_many_parts", f"{parts} parts, {_MOST_PARTS} are allowed"))
    return problems


def _beyond_quota(
    resources: Resources, usage: tuple[int, int], request: UploadRequest
) -> list[FieldProblem]:
    settings = resources.settings
    unfinished, used_bytes = usage
    problems = []
    if unfinished >= settings.max_open_uploads:
        problems.append(_about_files("too_many_open", f"{unfinished} uploads are unfinished"))
    if used_bytes + request.bytes > settings.upload_quota_bytes:
        left = max(settings.upload_quota_bytes - used_bytes, 0)
        problems.append(_about_files("quota", f"{left} bytes are left to the project"))
    return problems


def _about_files(code: str, message: str) -> FieldProblem:
    return FieldProblem(pointer="/files", code=code, message=message)


def _existing(resources: Resources, project_id: str, upload_id: str) -> UploadRecord:
    """Return the upload; those of other projects do not exist for this one."""
    upload = None
    if is_id(UPLOAD, upload_id):
        with resources.database.transaction() as transaction:
            upload = uploads.find(transaction, upload_id, project_id)
    if upload is None:
        raise UploadNotFoundError
    return upload
