"""Downloads: checksums are verified and interrupted downloads resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.domain.artifact import Artifact
from intraslice_client._async.transport import AsyncTransport
from intraslice_client._retries import Backoff, may_retry
from intraslice_client.errors import DamagedFileError

ListArtifacts = Callable[[], Awaitable[tuple[Artifact, ...]]]
ProgressCallback = Callable[[int, int], None]
"""Receives the bytes received so far and the total, both over all files."""


@dataclass
class _ByteCounter:
    """Bytes received so far, over all files."""

    total: int
    on_progress: ProgressCallback | None
    received: int = 0

    def add(self, count: int) -> None:
        self.received += count
        if self.on_progress is not None:
            self.on_progress(self.received, self.total)


class AsyncDownloads:
    """Download of artifacts into a directory."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def download_all(
        self, list_artifacts: ListArtifacts, directory: Path, on_progress: ProgressCallback | None
    ) -> tuple[Path, ...]:
        """Download all listed artifacts; expired links are renewed by listing them again."""
        root = directory.resolve()
        files = await list_artifacts()
        counter = _ByteCounter(total=sum(file.bytes for file in files), on_progress=on_progress)
        paths = []
        for file in files:
            target = (root / file.name).resolve()
            if not target.is_relative_to(root):
                raise DamagedFileError(f"artifact {file.name!r} points outside of {directory}")
            target.parent.mkdir(parents=True, exist_ok=True)
            if _is_complete(target, file):
                counter.add(file.bytes)
            else:
                await self._download(file, target, list_artifacts, counter)
            paths.append(target)
        return tuple(paths)

    async def _download(
        self, file: Artifact, target: Path, list_artifacts: ListArtifacts, counter: _ByteCounter
    ) -> None:
        """Download one file; its name ends in `.part` until it is complete and verified."""
        partial = target.with_name(target.name + ".part")
        counter.add(_size(partial))
        backoff = Backoff(self._transport.patience)
        while _size(partial) < file.bytes or not partial.exists():
            before = _size(partial)
            outcome = await self._receive(file.url, partial, counter)
            if _size(partial) > before:
                backoff.reset()
            if outcome is None:
                break
            expired = _is_expired(outcome)
            if expired:
                file = await _renewed(file, list_artifacts)
            retryable = expired or may_retry(outcome, idempotent=True)
            await self._transport.delay_retry(outcome, backoff, retryable)
        if _sha256(partial) != file.sha256:
            partial.unlink()
            raise DamagedFileError(f"SHA-256 of {file.name} does not match; download it again")
        partial.replace(target)

    async def _receive(
        self, url: str, partial: Path, counter: _ByteCounter
    ) -> httpx.Response | httpx.TransportError | None:
        """Append the bytes of one response to `partial`; return None if it was complete."""
        offset = _size(partial)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            # With a bucket as artifact store the service redirects to it.
            async with self._transport.http.stream(
                "GET", url, headers=headers, follow_redirects=True
            ) as response:
                if response.is_error:
                    await response.aread()
                    return response
                if response.status_code != httpx.codes.PARTIAL_CONTENT and offset:
                    counter.add(-offset)
                    partial.unlink()
                await _append(response, partial, counter)
        except httpx.TransportError as error:
            return error
        return None


async def _append(response: httpx.Response, file: Path, counter: _ByteCounter) -> None:
    """Append the body of a response to a file while it arrives."""
    with file.open("ab") as stream:
        async for chunk in response.aiter_bytes():
            stream.write(chunk)
            counter.add(len(chunk))


async def _renewed(file: Artifact, list_artifacts: ListArtifacts) -> Artifact:
    """Return the artifact with a new link."""
    return next(artifact for artifact in await list_artifacts() if artifact.name == file.name)


def _is_expired(outcome: httpx.Response | httpx.TransportError) -> bool:
    """Return True if the response says that the link is no longer valid."""
    return not isinstance(outcome, httpx.TransportError) and outcome.status_code in (
        httpx.codes.UNAUTHORIZED,
        httpx.codes.FORBIDDEN,
    )


def _is_complete(target: Path, file: Artifact) -> bool:
    return target.is_file() and _size(target) == file.bytes and _sha256(target) == file.sha256


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
