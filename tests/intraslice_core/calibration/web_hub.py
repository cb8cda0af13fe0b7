"""A local Hub with the file of the source `web`: a redirect to a store, as the real one answers."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import huggingface_hub.constants
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from intraslice_core.text_sources import WEB_CALIBRATION_FILE, WEB_EVALUATION_FILE, HubFile
from tests.app.api.serving import listening

_FILES = {file.path: file for file in (WEB_CALIBRATION_FILE, WEB_EVALUATION_FILE)}
_MEMBERS = 4000
_DEFAULT_SIZE = -1


def page(file: HubFile, number: int) -> str:
    """Return the text of a page; the pages of different files differ."""
    return f"Page {number} of {file.path[-22:-11]} is about {number * 7919 % 104729}.\n"


@dataclass
class WebHub:
    """Answers of the Hub, and what it was asked for."""

    url: str = ""
    status: int = 302
    sha256: str = ""
    size: int = _DEFAULT_SIZE
    delay: float = 0.0
    broken: bool = False
    """Records without a known field, as of another data set."""
    requests: list[str] = field(default_factory=list)
    bytes_sent: int = 0

    def resolve(self, revision: str, path: str) -> Response:
        self.requests.append(f"{revision}/{path}")
        if self.status != 302:
            return Response(status_code=self.status)
        file = _FILES[path]
        headers = {
            "X-Linked-Size": str(file.size if self.size == _DEFAULT_SIZE else self.size),
            "X-Linked-Etag": f'"{self.sha256 or file.sha256}"',
        }
        return RedirectResponse(f"/store/{path}", status_code=302, headers=headers)

    async def download(self, path: str, request: Request) -> Response:
        await asyncio.sleep(self.delay)
        field_name = "body" if self.broken else "text"
        # Members of a gzip file may be joined: a large file from little work.
        lines = "".join(
            json.dumps({field_name: page(_FILES[path], number), "url": "https://x.org"}) + "\n"
            for number in range(1000)
        )
        member = gzip.compress(lines.encode())

        async def body() -> AsyncIterator[bytes]:
            for _ in range(_MEMBERS):
                if await request.is_disconnected():
                    return
                self.bytes_sent += len(member)
                yield member

        return StreamingResponse(body(), media_type="application/gzip")


@contextmanager
def web_hub() -> Iterator[WebHub]:
    """Serve the Hub and make it that of huggingface_hub."""
    hub, app = WebHub(), FastAPI()

    async def resolve(revision: str, path: str) -> Response:
        return hub.resolve(revision, path)

    async def download(path: str, request: Request) -> Response:
        return await hub.download(path, request)

    app.get("/datasets/allenai/c4/resolve/{revision}/{path:path}")(resolve)
    app.get("/store/{path:path}")(download)
    with listening(app) as hub.url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        patch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield hub
