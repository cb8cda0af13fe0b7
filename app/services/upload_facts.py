"""Facts about ready uploads that admission needs before a worker has their files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.adapters.database import uploads
from app.domain.errors import ArtifactNotFoundError, StoreUnavailableError
from app.domain.identifiers import UPLOAD, is_id
from app.domain.job import JobRequest
from app.domain.upload import UploadKind, UploadRecord, UploadState
from app.services.admission import AdmittedJob, admit
from app.services.resources import Resources
from app.services.upload_contents import write_skeleton
from app.services.uploads import locator
from intraslice_core.cost_model import DenseModel, read_dense

_MOST_DESCRIBED = 64
_described: dict[str, DenseModel] = {}
"""Descriptions by upload id; a ready upload never changes."""


def admit_request(resources: Resources, project_id: str, request: JobRequest) -> AdmittedJob:
    """Admit a project's request, with its uploads as far as they are known here.

    Raises:
        InvalidRequestError: names each field that is rejected.
    """
    facts = StoredUploads(resources, project_id)
    return admit(resources.settings, request, locator(resources, project_id), facts)


class StoredUploads:
    """Uploads of one project, in the artifact store.

    Args:
        resources: database, store and settings.
        project_id: owner of the uploads.
    """

    def __init__(self, resources: Resources, project_id: str) -> None:
        self._resources = resources
        self._project_id = project_id

    def describe(self, upload_id: str) -> DenseModel | None:
        """Return the description of a model from its settings and headers.

        None if it is not ready, or if the store cannot be read now: a worker then finds out.

        Raises:
            ModelError: if the model cannot be compressed.
        """
        upload = self._ready(upload_id, UploadKind.MODEL)
        if upload is None:
            return None
        if upload_id in _described:
            return _described[upload_id]
        place = self._resources.settings.data_dir
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="described-", dir=place) as scratch:
            try:
                write_skeleton(self._resources, upload, Path(scratch))
            except (ArtifactNotFoundError, StoreUnavailableError):
                return None
            dense = read_dense(Path(scratch))
        if len(_described) >= _MOST_DESCRIBED:
            _described.clear()
        _described[upload_id] = dense
        return dense

    def text_problem(self, upload_id: str, text_field: str | None) -> str | None:
        """Return why a job could not read a text by this field; None if it could, or may."""
        upload = self._ready(upload_id, UploadKind.TEXT)
        if upload is None or upload.text_columns is None:
            return None
        return upload.text_columns.problem(text_field)

    def _ready(self, upload_id: str, kind: UploadKind) -> UploadRecord | None:
        if not is_id(UPLOAD, upload_id):
            return None
        with self._resources.database.transaction() as transaction:
            upload = uploads.find(transaction, upload_id, self._project_id)
        if upload is None or upload.kind is not kind or upload.state is not UploadState.READY:
            return None
        return upload
