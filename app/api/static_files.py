"""Static files of a package, compressed and with entity tags."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

from fastapi.responses import Response

from app.domain.errors import NotFoundError

_PACKED = ".gz"
_KINDS = frozenset({".css", ".html", ".js", ".svg"})
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for again: an upgrade is seen at once
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, kw_only=True)
class _File:
    content: bytes
    packed: bytes
    media_type: str
    etag: str


class StaticFiles:
    """Files below a package's directory, read at the first request.

    Only files that were there then can be requested. A file that is stored compressed, with the
    ending `.gz`, is served under its name without that ending.
    """

    def __init__(self, package: ModuleType) -> None:
        self._package = package

    def response(self, name: str, accept_encoding: str, if_none_match: str) -> Response:
        """Return a file, or 304 if the client has it.

        Args:
            name: path below the package.
            accept_encoding: header of the request.
            if_none_match: header of the request.

        Raises:
            NotFoundError: if the package has no such file.
        """
        file = self._files.get(name)
        if file is None:
            raise NotFoundError
        headers = {**_HEADERS, "ETag": f"W/{file.etag}"}
        if file.etag in if_none_match:
            return Response(status_code=304, headers=headers)
        if "gzip" not in accept_encoding:
            return Response(file.content, media_type=file.media_type, headers=headers)
        headers["Content-Encoding"] = "gzip"
        return Response(file.packed, media_type=file.media_type, headers=headers)

    @cached_property
    def _files(self) -> dict[str, _File]:
        """All files by their path below the package."""
        assert self._package.__file__ is not None
        place = Path(self._package.__file__).parent
        names = (
            (path, path.with_suffix("") if path.suffix == _PACKED else path)
            for path in place.rglob("*")
        )
        return {
            name.relative_to(place).as_posix(): _read(path, name)
            for path, name in names
            if name.suffix in _KINDS
        }


def _read(path: Path, name: Path) -> _File:
    """Return the file at `path`, which is served as `name`."""
    stored = path.read_bytes()
    is_packed = path != name
    content = gzip.decompress(stored) if is_packed else stored
    kind = mimetypes.guess_type(name.name)[0] or "application/octet-stream"
    return _File(
        content=content,
        packed=stored if is_packed else gzip.compress(content, mtime=0),
        media_type="text/javascript" if name.suffix == ".js" else kind,
        etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )
