"""A job's events and log lines as server-sent events: past ones, then new ones, each once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from fastapi.sse import ServerSentEvent

from app.api.dependencies import Reader, ResourcesDep, WatchingDep
from app.domain.events import LAST_SEQUENCE, LIVE, Event, JobLive
from app.domain.job_log import LOG, Entry
from app.domain.lifecycle import TERMINAL
from app.services import keys
from app.services.watching import WatchedJob

_HEARTBEAT = "heartbeat"


class NothingFollowsError(Exception):
    """The job has ended and the client has its whole log."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """A reader's place in the log of a job that is being watched."""

    watched: WatchedJob
    after: int
    logs: bool
    """True if the reader wants the log lines too."""
    still_allowed: Callable[[], bool]
    """Check of the key in the database; it may be revoked while its stream is open."""

    def entries_after(self, sequence: int) -> list[Entry]:
        """Return what follows a sequence number and is to be sent."""
        if self.logs:
            return self.watched.entries_after(sequence)
        return list[Entry](self.watched.events_after(sequence))


async def _position(
    job_id: str,
    principal: Reader,
    watching: WatchingDep,
    resources: ResourcesDep,
    after: Annotated[
        int, Query(ge=0, le=LAST_SEQUENCE, description="Begin after this `sequence`.")
    ] = 0,
    logs: Annotated[bool, Query(description="Send log lines too, as `event: log`.")] = False,
    last_event_id: Annotated[
        int | None,
        Header(
            ge=0,
            le=LAST_SEQUENCE,
            description="The last `id` received, sent on reconnection. Overrides `after`.",
        ),
    ] = None,
) -> AsyncIterator[Position]:
    """Watch the job until the stream ends; errors are raised before it begins."""
    async with watching.watch(principal, job_id, log=True) as watched:
        position = Position(
            watched=watched,
            after=after if last_event_id is None else last_event_id,
            logs=logs,
            still_allowed=partial(keys.is_still_good, resources, principal),
        )
        if watched.job.state in TERMINAL and not position.entries_after(position.after):
            raise NothingFollowsError
        yield position


PositionDep = Annotated[Position, Depends(_position)]


async def follow(position: Position, heartbeat_seconds: float) -> AsyncIterator[ServerSentEvent]:
    """Yield the log from a position on, and live progress between events, until the job ends."""
    watched, sent = position.watched, position.after
    shown: JobLive | None = None
    allowed_until = time.monotonic() + heartbeat_seconds
    while not watched.closed:
        if time.monotonic() >= allowed_until:
            if not await run_in_threadpool(position.still_allowed):
                return
            allowed_until = time.monotonic() + heartbeat_seconds
        # Read together, because the job may change while events are being sent.
        version, job, news = watched.version, watched.job_or_none, position.entries_after(sent)
        for entry in news:
            sent = entry.sequence
            kind = entry.type if isinstance(entry, Event) else LOG
            yield ServerSentEvent(id=str(sent), event=kind, data=entry)
        if job is None or job.state in TERMINAL:
            return
        live = JobLive.of(job)
        if live != shown:
            shown = live
            yield ServerSentEvent(event=LIVE, data=live)
        try:
            # At most until the key is checked again.
            async with asyncio.timeout(max(allowed_until - time.monotonic(), 0.0)):
                await watched.changed_since(version)
        except TimeoutError:
            yield ServerSentEvent(comment=_HEARTBEAT)


def install_end_of_stream(app: FastAPI) -> None:
    """Answer 204 if nothing follows: only that stops a browser's EventSource from reconnecting."""

    async def nothing_follows(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return Response(status_code=204)

    app.add_exception_handler(NothingFollowsError, nothing_follows)
