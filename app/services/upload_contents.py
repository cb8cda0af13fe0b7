"""Contents of uploads: verified once complete, assembled on the worker that uses them."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from app.adapters.database import uploads
from app.domain.artifact import lifetime
from app.domain.errors import (
    ArtifactNotFoundError,
    DiskFullError,
    ServiceError,
    UploadDamagedError,
    UploadNotFoundError,
)
from app.domain.job import JobRequest
from app.domain.upload import (
    REFERENCE,
    TextColumns,
    UploadError,
    UploadKind,
    UploadRecord,
    UploadState,
)
from app.services.resources import Resources
from app.services.text_contents import has_records, read_columns
from app.services.uploads import discard
from app.telemetry import get_logger
from intraslice_core.checkpoints.inspection import MAX_HEADER_BYTES, inspect_model, require_within
from intraslice_core.errors import CalibrationSourceError, ModelError

_LENGTH_BYTES = 8
_WEIGHTS = ".safetensors"
_TOKENIZERS = ("tokenizer", "vocab", "merges")
"""Beginnings of the names of settings that do not describe the model."""
_log = get_logger(__name__)


class _AbandonedError(Exception):
    """The upload was deleted, or its check was started again."""


def verify(resources: Resources, upload_id: str) -> None:
    """Read and verify all parts once; the upload is then ready or refused.

    A model is inspected by its headers, with holes where its weights are: what lies about its size
    is found before anything of that size is made.
    """
    upload = _find(resources, upload_id)
    if upload is None or upload.state is not UploadState.VERIFYING:
        return
    error: UploadError | None = None
    columns: TextColumns | None = None
    try:
        columns = _check(resources, upload)
    except _AbandonedError:
        return
    except (
        UploadDamagedError,
        ArtifactNotFoundError,
        ModelError,
        CalibrationSourceError,
    ) as cause:
        error = UploadError(code=cause.code, message=cause.message)
    days = resources.settings.upload_days
    with resources.database.transaction() as transaction:
        ended = uploads.end_check(transaction, upload_id, error, lifetime(days), columns)
    if ended and error is not None:
        _discard_refused(resources, upload)
    _log.info("upload_checked", upload_id=upload_id, refused=error and error.code)


def _discard_refused(resources: Resources, upload: UploadRecord) -> None:
    try:
        discard(resources, upload)
    except ServiceError as error:
        # They go when the upload expires or is deleted.
        _log.warning("refused_upload_kept", upload_id=upload.id, code=error.code)


def fetch(
    resources: Resources, project_id: str, request: JobRequest, before_part: Callable[[], None]
) -> None:
    """Assemble the uploads that a job names on this machine, unless they are there.

    Args:
        resources: the store.
        project_id: the job's.
        request: the job's.
        before_part: may raise to stop.

    Raises:
        UploadNotFoundError: if the project has no such upload any more, or the store has lost it.
        UploadDamagedError: if the store holds other bytes than were checked.
        DiskFullError: if there is no room for it.
    """
    for upload_id in _named(request):
        upload = _find(resources, upload_id)
        if upload is None or upload.project_id != project_id:
            raise UploadNotFoundError(f"There is no upload {upload_id}")
        place = resources.uploads_dir / upload.id
        if place.is_dir():
            continue
        try:
            _assemble(resources, upload, place, before_part)
        except ArtifactNotFoundError as error:
            raise UploadNotFoundError(
                f"The artifact store has lost upload {upload_id} ({error.message}): upload it again"
            ) from error


def write_skeleton(resources: Resources, upload: UploadRecord, directory: Path) -> None:
    """Write settings and headers of a ready model, with holes where its weights are.

    Tokenizers are left out. Nothing is verified again, and only the beginnings of files are read.
    """
    for index, file in enumerate(upload.files):
        is_settings = file.name.endswith(".json") and not file.name.startswith(_TOKENIZERS)
        if file.name.endswith(_WEIGHTS) or is_settings:
            _copy_beginning(resources, upload, index, directory / file.name)


def remove_stale(resources: Resources) -> None:
    """Remove assembled uploads from this machine that have been deleted."""
    place = resources.uploads_dir
    here = (
        {entry.name for entry in place.iterdir() if entry.name[0] != "."}
        if place.is_dir()
        else set()
    )
    if not here:
        return
    with resources.database.transaction() as transaction:
        gone = here - uploads.existing(transaction, here)
    for name in gone:
        shutil.rmtree(place / name, ignore_errors=True)


def _check(resources: Resources, upload: UploadRecord) -> TextColumns | None:
    """Verify the files; return the fields of a text with records."""

    def go_on() -> None:
        with resources.database.transaction() as transaction:
            if not uploads.touch(transaction, upload.id):
                raise _AbandonedError

    resources.settings.data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="upload-", dir=resources.settings.data_dir) as scratch:
        skeleton = Path(scratch)
        for index, file in enumerate(upload.files):
            keep = _LENGTH_BYTES + MAX_HEADER_BYTES if file.name.endswith(_WEIGHTS) else file.bytes
            if upload.kind is UploadKind.TEXT:
                keep = file.bytes if has_records(file.name) else 0
            _copy(resources, upload, index, skeleton / file.name, keep, go_on)
        if upload.kind is UploadKind.MODEL:
            require_within(inspect_model(skeleton), resources.settings.model_limits)
        elif has_records(upload.files[0].name):
            return read_columns(skeleton / upload.files[0].name, go_on)
    return None


def _assemble(
    resources: Resources, upload: UploadRecord, place: Path, before_part: Callable[[], None]
) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place.parent).free < upload.bytes:
        raise DiskFullError(f"{place.parent} has no room for {upload.bytes} bytes")
    partial = place.with_name(f".{upload.id}.{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        for index, file in enumerate(upload.files):
            _copy(resources, upload, index, partial / file.name, file.bytes, before_part)
        if not place.is_dir():
            partial.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_beginning(resources: Resources, upload: UploadRecord, index: int, target: Path) -> None:
    """Copy a file up to the end of its header, and extend the copy sparsely; settings whole."""
    keep, size = _LENGTH_BYTES + MAX_HEADER_BYTES, 0
    is_weights = target.name.endswith(_WEIGHTS)
    with (
        target.open("wb") as file,
        closing(_chunks(resources, upload, index, lambda: None)) as chunks,
    ):
        for chunk in chunks:
            if is_weights and size == 0:
                length = int.from_bytes(chunk[:_LENGTH_BYTES], "little")
                keep = min(keep, _LENGTH_BYTES + length)
            file.write(chunk[: keep - size])
            size += len(chunk)
            if size >= keep:
                break
        file.truncate(upload.files[index].bytes)


def _copy(  # from where, what, to where, how much of it
    resources: Resources,
    upload: UploadRecord,
    index: int,
    target: Path,
    keep: int,
    before_part: Callable[[], None],
) -> None:
    """Copy a file's first `keep` bytes, verify all of it, and extend the copy sparsely."""
    announced = upload.files[index]
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk in _chunks(resources, upload, index, before_part):
            digest.update(chunk)
            file.write(chunk[: max(keep - size, 0)])
            size += len(chunk)
        file.truncate(size)
    if size != announced.bytes or digest.hexdigest() != announced.sha256:
        raise UploadDamagedError(f"{announced.name} has another size or SHA-256 than announced")


def _chunks(
    resources: Resources, upload: UploadRecord, index: int, before_part: Callable[[], None]
) -> Generator[bytes, None, None]:
    for part in upload.parts(index):
        before_part()
        yield from resources.store.chunks(part.key)


def _named(request: JobRequest) -> set[str]:
    texts = [*request.compression.seen_sources]
    if request.evaluation is not None:
        texts += request.evaluation.perplexity
    named = {text.removeprefix(REFERENCE) for text in texts if text.startswith(REFERENCE)}
    return named | ({request.model.ref} if request.model.source == "upload" else set())


def _find(resources: Resources, upload_id: str) -> UploadRecord | None:
    with resources.database.transaction() as transaction:
        return uploads.find(transaction, upload_id)
