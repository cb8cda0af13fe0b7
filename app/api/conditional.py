"""Conditional requests: `ETag`, `If-None-Match`, `If-Match` and long polling by `?wait`."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from app.domain.lifecycle import TERMINAL
from app.domain.principal import Principal
from app.services.watching import WatchedJob, Watching

_LONGEST_WAIT_SECONDS = 60
_TAG = re.compile(r'(?:W/)?("[^"]*")')
_TAGS = re.compile(r'(?:W/)?"[^"]*"')
"""Entity tags with their weakness."""

IfNoneMatch = Annotated[
    str | None,
    Header(max_length=4096, description="`ETag` of the client's copy: 304 if it is current."),
]
IfMatch = Annotated[
    str | None,
    Header(
        max_length=4096,
        description="`ETag` of the client's copy: 412 if the job has changed since.",
    ),
]
WaitQuery = Annotated[
    float,
    Query(
        ge=0,
        le=_LONGEST_WAIT_SECONDS,
        description="Seconds to wait until the job differs from `If-None-Match`, or without one "
        "until it changes. A job that has ended is returned at once.",
    ),
]
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The client's copy is current; no body."}
}


@dataclass(frozen=True, kw_only=True)
class Representation:
    """The body of a response and its entity tag."""

    body: bytes
    etag: str
    media_type: str = "application/json"

    @classmethod
    def of(cls, model: BaseModel, *, weak: bool = False) -> Representation:
        """Return a model as JSON; a weak tag promises equal meaning, not equal bytes."""
        body = model.model_dump_json().encode()
        digest = hashlib.sha256(body).hexdigest()[:32]
        return cls(body=body, etag=f'W/"{digest}"' if weak else f'"{digest}"')

    @classmethod
    def of_bytes(cls, body: bytes, media_type: str) -> Representation:
        """Return the representation of bytes."""
        digest = hashlib.sha256(body).hexdigest()[:32]
        return cls(body=body, etag=f'"{digest}"', media_type=media_type)

    def is_known(self, if_none_match: str | None) -> bool:
        """Return whether the client has it, by weak comparison (RFC 9110, section 13.1.2)."""
        if if_none_match is None:
            return False
        tags = _TAG.findall(if_none_match)
        return if_none_match.strip() == "*" or self.etag.removeprefix("W/") in tags

    def fulfils(self, if_match: str | None) -> bool:
        """Return whether `If-Match` holds, by strong comparison (RFC 9110, section 13.1.1)."""
        if if_match is None or if_match.strip() == "*":
            return True
        return self.etag in _TAGS.findall(if_match)

    def response(
        self, if_none_match: str | None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return the response with these headers, or 304 if the client has it."""
        headers = {"ETag": self.etag, "Cache-Control": "private, no-cache", **(headers or {})}
        if self.is_known(if_none_match):
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


async def changed_job(
    watching: Watching,
    principal: Principal,
    job_id: str,
    *,
    request: Request,
    wait: float,
    known: str | None,
) -> Representation:
    """Return the job at once if it differs from the client's, else after a change or the wait.

    Args:
        watching: this process's watches.
        principal: who asks.
        job_id: for what.
        request: noticed if it is given up.
        wait: seconds at most.
        known: `If-None-Match`; without it, the job as it is now.

    Raises:
        JobNotFoundError: if there is none, or it is deleted meanwhile.
    """
    deadline = asyncio.get_running_loop().time() + wait
    async with watching.watch(principal, job_id, log=False) as watched:
        shown = _represent(watched)
        etag = shown.etag if known is None else known
        gone = asyncio.create_task(_client_gone(request))
        try:
            while shown.is_known(etag) and not _is_settled(watched):
                if not await _changes(watched, deadline, gone):
                    break
                shown = _represent(watched)
        finally:
            gone.cancel()
    return shown


def _represent(watched: WatchedJob) -> Representation:
    return Representation.of(watched.job)


def _is_settled(watched: WatchedJob) -> bool:
    """Return whether the job will not change any more."""
    return watched.closed or watched.job.state in TERMINAL


async def _changes(watched: WatchedJob, deadline: float, gone: asyncio.Task[None]) -> bool:
    """Wait for a change; return False at the deadline or if the client disconnects."""
    change = asyncio.create_task(watched.changed_since(watched.version))
    rest = deadline - asyncio.get_running_loop().time()
    try:
        await asyncio.wait({change, gone}, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
        return change.done()
    finally:
        change.cancel()


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
