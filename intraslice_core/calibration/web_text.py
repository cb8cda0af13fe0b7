"""Web text from the Hugging Face hub: the source `web`.

The beginning of one gzipped file of a pinned revision is streamed, as far as the text is needed:
about 2.5 bytes a token. Endpoint, token and offline mode are those of huggingface_hub.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from intraslice_core.calibration.json_text import json_lines
from intraslice_core.calibration.python_text import Part
from intraslice_core.calibration.records import Record
from intraslice_core.errors import WebTextError
from intraslice_core.text_sources import (
    WEB_CALIBRATION_FILE,
    WEB_DATASET,
    WEB_EVALUATION_FILE,
    WEB_REVISION,
    HubFile,
)

_TIMEOUTS = (3.0, 10.0, 10.0, 10.0)
"""Longest times to connect to an address, read, write and wait for a connection, in seconds."""
_SHA256 = re.compile("[0-9a-f]{64}")
_LINKED_SIZE, _LINKED_ETAG = "X-Linked-Size", "X-Linked-Etag"
"""Headers with size and SHA-256 of the file to which the hub redirects."""


def web_records(part: Part) -> Generator[Record, None, None]:
    """Yield the records of the source `web`, reading no further than they are taken.

    Calibration and evaluation have a file each. Nothing is tried again.

    Raises:
        WebTextError: if the hub does not answer in time, rejects the request, is switched off
            (`HF_HUB_OFFLINE`), or has another file than the pinned one.
    """
    file = WEB_CALIBRATION_FILE if part == "calibration" else WEB_EVALUATION_FILE
    with _explained(), _response(file) as response:
        _require_pinned(response, file)
        stream = io.BufferedReader(_Body(response.iter_raw()))
        yield from json_lines(io.TextIOWrapper(gzip.GzipFile(fileobj=stream), encoding="utf-8"))


@contextmanager
def _response(file: HubFile) -> Iterator[Any]:
    """Request a file; the response's body is read on demand."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(WEB_DATASET, file.path, repo_type="dataset", revision=WEB_REVISION)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    request = get_session().stream(
        "GET", url, headers=headers, timeout=_TIMEOUTS, follow_redirects=True
    )
    with request as response:
        hf_raise_for_status(response)
        yield response


def _require_pinned(response: Any, file: HubFile) -> None:
    """Raise if the hub's description of the file differs from the pinned one.

    The hub describes a large file in its redirect to the store. Mirrors may leave the digest out.
    """
    headers: dict[str, str] = {}
    for part in (*response.history, response):
        headers |= _facts(part)
    size = headers.get(_LINKED_SIZE) or headers.get("Content-Length")
    digest = headers.get(_LINKED_ETAG, "")
    if size not in (None, str(file.size)):
        raise WebTextError(f"{file.path} has {size} bytes, expected {file.size}")
    if _SHA256.fullmatch(digest) and digest != file.sha256:
        raise WebTextError(f"{file.path} has SHA-256 {digest[:8]}…, expected {file.sha256[:8]}…")


def _facts(response: Any) -> dict[str, str]:
    """Return the headers that describe the file; a redirect's own length is not the file's."""
    names = [_LINKED_SIZE, _LINKED_ETAG]
    names += ["Content-Length"] if response.is_success else []
    return {name: response.headers[name].strip('W/"') for name in names if name in response.headers}


class _Body(io.RawIOBase):
    """File of the bytes of a response, which are read as they arrive."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        content, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn every error into one that names the data set."""
    try:
        yield
    # Network, hub, archive and decoding errors share no base class below Exception.
    except Exception as error:
        reason = error.message if isinstance(error, WebTextError) else _reason(error)
        raise WebTextError(
            f"web text ({WEB_DATASET}) cannot be read: {reason}",
            hint="allow access to the Hugging Face hub, or use other sources",
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
