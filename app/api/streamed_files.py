"""Files that the API streams from a bucket, whole or as one range (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Send

from app.adapters.storage import ArtifactStore
from app.api.head_requests import is_head
from app.api.problems import Problem, problem_response
from app.domain.artifact import ArtifactRecord
from app.domain.errors import ServiceError
from app.telemetry import get_logger

_RANGE = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?")
_log = get_logger(__name__)


class StreamedBody(StreamingResponse):
    """A body whose source may fail half-way: one log line, and a closed connection."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except ServiceError as error:
            # The server closes a connection without the last message: the client sees the end.
            _log.warning("download_interrupted", code=error.code, reason=error.message)


def entity_tag(file: ArtifactRecord) -> str:
    """Return the `ETag` of a file, the same from every process and every kind of store."""
    return f'"{file.sha256}"'


def stream_file(request: Request, store: ArtifactStore, file: ArtifactRecord) -> Response:
    """Return a response that streams a file, or the range of it that the client wants."""
    size = store.size(file.key)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": _disposition(PurePosixPath(file.name).name),
        "ETag": entity_tag(file),
    }
    span = _requested(request.headers, entity_tag(file), size)
    status = 206 if span is not None else 200
    span = range(size) if span is None else span
    if status == 206 and not span:
        detail = f"The range is outside of the file, which has {size} bytes"
        problem = Problem(416, "range_not_satisfiable", detail)
        response = problem_response(request.scope, problem)
        response.headers["Content-Range"] = f"bytes */{size}"
        return response
    if status == 206:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
    headers["Content-Length"] = str(len(span))
    if is_head(request):
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    body = store.stream(file.key, span.start, span.stop)
    return StreamedBody(body, status, headers=headers, media_type=file.media_type)


def _disposition(name: str) -> str:
    quoted = quote(name)
    return (
        f'attachment; filename="{name}"'
        if quoted == name
        else f"attachment; filename*=utf-8''{quoted}"
    )


def _requested(headers: Mapping[str, str], etag: str, size: int) -> range | None:
    """Return the requested bytes, empty if there are none of them; None for the whole file.

    Several ranges, other units and malformed headers are answered with the whole file.
    """
    match = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if match is None or headers.get("if-range", etag) != etag:
        return None
    first, last = (None if text is None else int(text) for text in match.groups())
    if first is None:
        return None if last is None else range(max(size - last, 0), size)
    if last is not None and last < first:
        return None
    return range(min(first, size), size if last is None else min(last + 1, size))
