"""Uploads of models and texts, to be used by jobs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import httpx

from app.domain.upload import (
    Upload,
    UploadDetails,
    UploadKind,
    UploadList,
    UploadState,
    is_model_file,
)
from intraslice_client._async.transport import AsyncTransport
from intraslice_client.errors import UploadRejectedError

_VALIDATION_TIMEOUT_SECONDS = 3600.0
"""Limit for the service to read and validate a complete upload."""
_POLL_SECONDS = 0.5
_PART_TIMEOUT_SECONDS = 600.0
ProgressCallback = Callable[[int, int], None]
"""Receives the bytes stored so far and the total, both over all files."""


class AsyncUploads:
    """Methods of `/v1/uploads`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def model(
        self,
        directory: Path,
        *,
        upload_id: str | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Upload:
        """Upload a safetensors checkpoint, for jobs with `ModelSource(source="upload", ref=id)`.

        Python code and pickle files are not uploaded.

        Args:
            directory: the checkpoint.
            upload_id: id of an interrupted upload to resume.
            on_progress: called with the bytes stored so far and the total.

        Raises:
            UploadRejectedError: if the files differ from the announced ones or are not a model.
        """
        files = [file for file in sorted(directory.iterdir()) if is_model_file(file.name)]
        name = directory.resolve().name
        return await self._send(UploadKind.MODEL, name, files, upload_id, on_progress)

    async def text(
        self,
        file: Path,
        *,
        upload_id: str | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Upload:
        """Upload a text; `upload:ID` is then a source of calibration or evaluation text."""
        return await self._send(UploadKind.TEXT, file.name, [file], upload_id, on_progress)

    async def get(self, upload_id: str) -> UploadDetails:
        """Return an upload with the URLs of its missing parts."""
        return await self._transport.fetch(UploadDetails, "GET", f"/v1/uploads/{upload_id}")

    async def list(self) -> AsyncIterator[Upload]:
        """Yield the uploads of the project, newest first."""
        async for page in self._transport.pages(UploadList, "/v1/uploads"):
            for upload in page.data:
                yield upload

    async def delete(self, upload_id: str) -> None:
        """Delete an upload and its files."""
        await self._transport.send("DELETE", f"/v1/uploads/{upload_id}", idempotent=False)

    async def _send(
        self,
        kind: UploadKind,
        name: str,
        files: Sequence[Path],
        upload_id: str | None,
        on_progress: ProgressCallback | None,
    ) -> Upload:
        upload_id = upload_id or await self._create(kind, name, files)
        await self._send_files(upload_id, files, on_progress)
        path = f"/v1/uploads/{upload_id}"
        await self._transport.send("POST", f"{path}/complete", idempotent=True)
        deadline = time.monotonic() + _VALIDATION_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            upload = await self._transport.fetch(Upload, "GET", path)
            if upload.state is UploadState.READY:
                return upload
            if upload.error is not None:
                raise UploadRejectedError(
                    f"upload {upload_id} was rejected: {upload.error.message}"
                )
            await asyncio.sleep(_POLL_SECONDS)
        raise UploadRejectedError(
            f"upload {upload_id} was not validated within {_VALIDATION_TIMEOUT_SECONDS:.0f} s"
        )

    async def _create(self, kind: UploadKind, name: str, files: Sequence[Path]) -> str:
        descriptions = []
        for file in files:
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            descriptions.append({"name": file.name, "bytes": file.stat().st_size, "sha256": sha256})
        body = {"kind": kind, "files": descriptions, "name": name[:200] or None}
        return (await self._transport.fetch(UploadDetails, "POST", "/v1/uploads", json=body)).id

    async def _send_files(
        self, upload_id: str, files: Sequence[Path], on_progress: ProgressCallback | None
    ) -> None:
        total, stored = sum(file.stat().st_size for file in files), 0
        for index, file in enumerate(files):
            # Requested for each file because the URLs of parts expire.
            upload = await self.get(upload_id)
            if index >= len(upload.files) or upload.files[index].name != file.name:
                raise UploadRejectedError(
                    f"file {file.name} is not part of upload {upload_id}; start a new upload"
                )
            with file.open("rb") as stream:
                for part in upload.files[index].parts:
                    if part.url is not None:
                        stream.seek(part.number * upload.part_bytes)
                        await self._put_part(part.url, stream.read(part.bytes))
                    stored += part.bytes
                    if on_progress is not None:
                        on_progress(stored, total)

    async def _put_part(self, url: str, content: bytes) -> None:
        """Send one part. The URL authorises itself, so a bucket does not get the API key."""
        if url.startswith("/"):
            await self._transport.send("PUT", url, content=content)
            return
        async with httpx.AsyncClient(timeout=_PART_TIMEOUT_SECONDS) as bucket:
            await self._transport.send("PUT", url, content=content, http=bucket)
