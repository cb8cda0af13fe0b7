"""/v1/jobs/{id}/events/stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.dependencies import ResourcesDep
from app.api.documentation import problems
from app.api.event_stream import PositionDep, follow

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(401, 403, 422, 503))
_EXAMPLE = """event: progress
data: {"sequence":3,"type":"progress","created_at":"2026-03-01T12:00:00Z","attempt":1,"data":{}}
id: 3

event: live
data: {"state":"running","stage":"compress","progress":{"fraction":0.4,"message":"…"},"attempt":1}

"""
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {EventSourceResponse.media_type: {"example": _EXAMPLE}}},
    204: {"description": "The job has ended and the client has all its events: do not reconnect."},
}


@router.get(
    "/{job_id}/events/stream",
    response_class=EventSourceResponse,
    responses=problems(404) | _STREAM,
)
async def stream_events(
    position: PositionDep, resources: ResourcesDep
) -> AsyncIterator[ServerSentEvent]:
    """Stream a job's events until the job has ended, with `logs` also its log lines.

    Every event is one message: `id` is its `sequence`, `event` its `type`, `data` its JSON as in
    the list of events. With `logs=true` every line of the engine's log is a message too, with
    `event: log` and its JSON as in the list of log lines. A client that reconnects sends the last
    `id` as `Last-Event-ID` and misses nothing.

    Progress that is too frequent for an event is sent as `event: live`, with the job's current
    `state`, `stage`, `progress`, `attempt` and `queue_position`. These messages have no `id` and
    are not repeated: each replaces the one before, and the first follows all earlier events.
    """
    async for message in follow(position, resources.settings.stream_heartbeat_seconds):
        yield message
