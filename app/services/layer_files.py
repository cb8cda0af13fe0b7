"""Finished layers of an attempt and the state of its training, kept so that the next one resumes.

A file counts once its row is written, under the lease of its attempt. Before that, and after its
row is deleted, its object is a left-over of the attempt.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from app.adapters.database import layer_files, leases
from app.adapters.database.engine import Transaction
from app.domain.artifact import LayerFile, layer_key
from app.domain.errors import ArtifactNotFoundError, LeaseLostError
from app.domain.job import JobRecord
from app.services.removal import delete_objects
from app.services.resources import Resources
from app.telemetry import get_logger

_log = get_logger(__name__)


def keep(resources: Resources, job: JobRecord, file: Path, *, replaces: str | None = None) -> None:
    """Copy a file of this machine to the store and write its row.

    Args:
        resources: store and database.
        job: owner of the file, as claimed.
        file: on this machine; it does not change any more.
        replaces: prefix of the names of files that this one makes superfluous; they are removed.

    Raises:
        LeaseLostError: if another worker claimed the job.
        StoreUnavailableError: if the store does not answer.
    """
    key = layer_key(job, file.name)
    layer_file = LayerFile(name=file.name, key=key, bytes=file.stat().st_size, sha256=_sha256(file))
    resources.store.put_file(key, file)
    with resources.database.transaction() as transaction:
        if not leases.lock_owned(transaction, job.lease):
            raise LeaseLostError
        layer_files.insert_new(transaction, job.id, layer_file)
        replaced = _forget_others(transaction, job.id, layer_file, replaces)
    delete_objects(resources, replaced)


def _forget_others(
    transaction: Transaction, job_id: str, file: LayerFile, prefix: str | None
) -> list[str]:
    """Delete the rows of other files with a prefix; return the keys of their objects."""
    others = [
        other
        for other in layer_files.of_job(transaction, job_id)
        if prefix is not None and other.name.startswith(prefix) and other.name != file.name
    ]
    for other in others:
        layer_files.forget(transaction, job_id, other.name)
    return [other.key for other in others]


def fetch(resources: Resources, job: JobRecord, directory: Path) -> frozenset[str]:
    """Synchronise a directory of this machine with the store.

    What an earlier attempt has left in the directory stays if the store holds the same, or
    nothing of that name. If the two differ the store's is taken, and all else goes: it was made
    by a run that came to another result.

    Returns:
        The names that the store holds.

    Raises:
        StoreUnavailableError: if the store does not answer.
    """
    with resources.database.transaction() as transaction:
        rows = layer_files.of_job(transaction, job.id)
    here = [row for row in rows if (directory / row.name).is_file()]
    if any(not _is_whole(directory, row) for row in here):
        shutil.rmtree(directory)
    return frozenset(row.name for row in rows if _bring(resources, job, row, directory))


def _bring(resources: Resources, job: JobRecord, row: LayerFile, directory: Path) -> bool:
    """Fetch a file; return False, and forget its row, if the store lost or damaged it."""
    target = directory / row.name
    if target.is_file():
        return True
    directory.mkdir(parents=True, exist_ok=True)
    try:
        resources.store.get_file(row.key, target)
    except ArtifactNotFoundError:
        _log.warning("layer_file_gone", job_id=job.id, file=row.name)
    if target.is_file() and _is_whole(directory, row):
        return True
    target.unlink(missing_ok=True)
    with resources.database.transaction() as transaction:
        if not leases.lock_owned(transaction, job.lease):
            raise LeaseLostError
        layer_files.forget(transaction, job.id, row.name)
    return False


def _is_whole(directory: Path, row: LayerFile) -> bool:
    return _sha256(directory / row.name) == row.sha256


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
