"""Files that arrive whole: checked, and gone on with where they were broken off."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.client.errors import DamagedFileError
from app.client.retries import Pauses, may_repeat
from app.client.synchronous.transport import Transport, failure
from app.domain.artifact import Artifact

_EXPIRED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
Announce = Callable[[], tuple[Artifact, ...]]
Listener = Callable[[int, int], None]


@dataclass
class _Tally:
    """Bytes that are there, of all files."""

    total: int
    listener: Listener | None
    there: int = 0

    def add(self, number: int) -> None:
        self.there += number
        if self.listener is not None:
            self.listener(self.there, self.total)


class Downloads:
    """Fetches artifacts into a directory."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def fetch_all(
        self, announce: Announce, directory: Path, listener: Listener | None
    ) -> tuple[Path, ...]:
        """All that is announced; asked again for links when those at hand have expired."""
        root = directory.resolve()
        files = announce()
        tally = _Tally(total=sum(file.bytes for file in files), listener=listener)
        paths = []
        for file in files:
            target = (root / file.name).resolve()
            if not target.is_relative_to(root):
                raise DamagedFileError(f"{file.name} would leave {directory}")
            target.parent.mkdir(parents=True, exist_ok=True)
            if _is_there(target, file):
                tally.add(file.bytes)
            else:
                self._fetch(file, target, announce, tally)
            paths.append(target)
        return tuple(paths)

    def _fetch(self, file: Artifact, target: Path, announce: Announce, tally: _Tally) -> None:
        """One file, under another name until it is complete."""
        partial = target.with_name(target.name + ".part")
        tally.add(_size(partial))
        pauses = Pauses(self._transport.patience)
        while _size(partial) < file.bytes or not partial.exists():
            before = _size(partial)
            outcome = self._receive(file.url, partial, tally)
            if _size(partial) > before:
                pauses.well()
            if outcome is None:
                break
            expired = (
                not isinstance(outcome, httpx.TransportError) and outcome.status_code in _EXPIRED
            )
            if expired:
                file = next(one for one in announce() if one.name == file.name)
            again = expired or may_repeat(outcome, repeatable=True)
            pause = pauses.after(outcome) if again else None
            if pause is None:
                raise failure(outcome)
            time.sleep(pause)
        if _digest(partial) != file.sha256:
            partial.unlink()
            raise DamagedFileError(f"{file.name} arrived damaged")
        partial.replace(target)

    def _receive(
        self, url: str, partial: Path, tally: _Tally
    ) -> httpx.Response | httpx.TransportError | None:
        """Append what one connection brings; None: all of it has come."""
        have = _size(partial)
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            # A store that is a bucket hands its files out itself.
            with self._transport.http.stream(
                "GET", url, headers=headers, follow_redirects=True
            ) as response:
                if response.is_error:
                    response.read()
                    return response
                if response.status_code != httpx.codes.PARTIAL_CONTENT and have:
                    tally.add(-have)
                    partial.unlink()
                with partial.open("ab") as stream:
                    for chunk in response.iter_bytes():
                        stream.write(chunk)
                        tally.add(len(chunk))
        except httpx.TransportError as error:
            return error
        return None


def _is_there(target: Path, file: Artifact) -> bool:
    return target.is_file() and _size(target) == file.bytes and _digest(target) == file.sha256


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
