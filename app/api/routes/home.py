"""The dashboard at /, and the files it is made of."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Header
from fastapi.responses import Response

from app import dashboard
from app.api.dependencies import ResourcesDep
from app.domain.errors import NotFoundError

router = APIRouter(include_in_schema=False)

_PAGE = "index.html"
_KINDS = frozenset({".css", ".html", ".js", ".svg"})
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'{bucket}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
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


@router.get("/")
def home(
    resources: ResourcesDep,
    accept_encoding: str = Header("", max_length=1024),
    if_none_match: str = Header(""),
) -> Response:
    answer = _answer(_PAGE, accept_encoding, if_none_match)
    # In direct mode the page uploads to the bucket; it requests nothing else from there.
    origin = resources.store.origin
    bucket = f" {origin}" if origin is not None else ""
    answer.headers["Content-Security-Policy"] = _POLICY.format(bucket=bucket)
    return answer


@router.get("/dashboard/{name:path}")
def asset(
    name: str,
    accept_encoding: str = Header("", max_length=1024),
    if_none_match: str = Header(""),
) -> Response:
    return _answer(name, accept_encoding, if_none_match)


@cache
def _files() -> dict[str, _File]:
    """By path below the package: only what is there can be asked for."""
    place = Path(dashboard.__file__).parent
    files = (path for path in place.rglob("*") if path.suffix in _KINDS)
    return {path.relative_to(place).as_posix(): _read(path) for path in files}


def _read(path: Path) -> _File:
    content = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return _File(
        content=content,
        packed=gzip.compress(content, mtime=0),
        media_type="text/javascript" if path.suffix == ".js" else kind,
        etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )


def _answer(name: str, accept_encoding: str, if_none_match: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise NotFoundError
    headers = {**_HEADERS, "ETag": f"W/{file.etag}"}
    if file.etag in if_none_match:
        return Response(status_code=304, headers=headers)
    if "gzip" not in accept_encoding:
        return Response(file.content, media_type=file.media_type, headers=headers)
    headers["Content-Encoding"] = "gzip"
    return Response(file.packed, media_type=file.media_type, headers=headers)
