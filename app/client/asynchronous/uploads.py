"""Uploads: models and texts of one's own, for jobs to name."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import httpx

from app.client.asynchronous.transport import AsyncTransport
from app.client.errors import UploadRefusedError, api_error
from app.domain.upload import (
    Upload,
    UploadDetails,
    UploadKind,
    UploadList,
    UploadState,
    is_model_file,
)

_CHECK_SECONDS = 3600.0
"""For the service to read all of an upload once."""
_CHECK_POLL_SECONDS = 0.5
_PART_TIMEOUT_SECONDS = 600.0
Listener = Callable[[int, int], None]


class AsyncUploads:
    """`/v1/uploads`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def model(
        self,
        directory: Path,
        *,
        upload_id: str | None = None,
        on_progress: Listener | None = None,
    ) -> Upload:
        """Send a directory of safetensors; its id is a job's `ModelSource(source="upload")`.

        Code and pickles stay at home.

        Args:
            directory: the checkpoint.
            upload_id: of an upload that was broken off, to go on with it.
            on_progress: hears how many bytes are there, and of how many.

        Raises:
            UploadRefusedError: if the service finds it is not what was announced, or no model.
        """
        files = [file for file in sorted(directory.iterdir()) if is_model_file(file.name)]
        name = directory.resolve().name
        return await self._send(UploadKind.MODEL, name, files, upload_id, on_progress)

    async def text(
        self, file: Path, *, upload_id: str | None = None, on_progress: Listener | None = None
    ) -> Upload:
        """Send a text; `upload:` and its id is a source of calibration or evaluation."""
        return await self._send(UploadKind.TEXT, file.name, [file], upload_id, on_progress)

    async def get(self, upload_id: str) -> UploadDetails:
        """The upload, and where to send which part of it."""
        return await self._transport.ask(UploadDetails, "GET", f"/v1/uploads/{upload_id}")

    async def list(self) -> AsyncIterator[Upload]:
        """All of the project's, newest first, page by page."""
        async for page in self._transport.pages(UploadList, "/v1/uploads"):
            for upload in page.data:
                yield upload

    async def delete(self, upload_id: str) -> None:
        """Forget it and its files."""
        await self._transport.send("DELETE", f"/v1/uploads/{upload_id}", repeatable=False)

    async def _send(
        self,
        kind: UploadKind,
        name: str,
        files: Sequence[Path],
        upload_id: str | None,
        listener: Listener | None,
    ) -> Upload:
        upload_id = upload_id or await self._announce(kind, name, files)
        await self._send_files(upload_id, files, listener)
        path = f"/v1/uploads/{upload_id}"
        await self._transport.send("POST", f"{path}/complete", repeatable=True)
        deadline = time.monotonic() + _CHECK_SECONDS
        while time.monotonic() < deadline:
            upload = await self._transport.ask(Upload, "GET", path)
            if upload.state is UploadState.READY:
                return upload
            if upload.error is not None:
                raise UploadRefusedError(f"{upload_id} was refused: {upload.error.message}")
            await asyncio.sleep(_CHECK_POLL_SECONDS)
        raise UploadRefusedError(f"{upload_id} is still being checked")

    async def _announce(self, kind: UploadKind, name: str, files: Sequence[Path]) -> str:
        announced = []
        for file in files:
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            announced.append({"name": file.name, "bytes": file.stat().st_size, "sha256": sha256})
        body = {"kind": kind, "files": announced, "name": name[:200] or None}
        return (await self._transport.ask(UploadDetails, "POST", "/v1/uploads", json=body)).id

    async def _send_files(
        self, upload_id: str, files: Sequence[Path], listener: Listener | None
    ) -> None:
        total, there = sum(file.stat().st_size for file in files), 0
        for index, file in enumerate(files):
            # Asked for each file: links to parts expire.
            upload = await self.get(upload_id)
            if index >= len(upload.files) or upload.files[index].name != file.name:
                raise UploadRefusedError(f"{upload_id} does not take {file.name}")
            with file.open("rb") as stream:
                for part in upload.files[index].parts:
                    if part.url is not None:
                        stream.seek(part.number * upload.part_bytes)
                        await self._put(part.url, stream.read(part.bytes))
                    there += part.bytes
                    if listener is not None:
                        listener(there, total)

    async def _put(self, url: str, content: bytes) -> None:
        """The link is the permission: a bucket must not see our key."""
        if url.startswith("/"):
            await self._transport.send("PUT", url, content=content)
            return
        async with httpx.AsyncClient(timeout=_PART_TIMEOUT_SECONDS) as bucket:
            response = await bucket.put(url, content=content)
        if response.is_error:
            raise api_error(response)
