"""The append-only log of a job, and the messages of its event stream."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from app.domain.job import Job, Progress
from app.domain.lifecycle import State
from app.domain.resource import ApiModel
from app.domain.worker import Waiting
from intraslice_core.progress import Stage

LAST_SEQUENCE = 2**31 - 1
"""The largest sequence number of an event."""
LIVE = "live"
"""The `event` of a `JobLive` message in a job's event stream."""


class EventType(StrEnum):
    """Type of an event."""

    QUEUED = "queued"
    STARTED = "started"
    PROGRESS = "progress"
    PAUSE_REQUESTED = "pause_requested"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCEL_REQUESTED = "cancel_requested"
    REQUEUED = "requeued"
    RETRIED = "retried"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})
"""Types after which a job has ended."""


class Event(ApiModel):
    """An event in a job's log."""

    sequence: int
    type: EventType
    created_at: datetime
    attempt: int
    data: dict[str, Any]


class EventList(ApiModel):
    """Part of a job's log, oldest first; the last `sequence` as `after` gives the next part."""

    data: tuple[Event, ...]
    has_more: bool

    @classmethod
    def of(cls, events: list[Event], limit: int) -> Self:
        """Return `limit` events from a query for `limit` + 1."""
        return cls(data=tuple(events[:limit]), has_more=len(events) > limit)


class JobLive(ApiModel):
    """Current state and progress of a job, its place in the queue, and why it waits."""

    state: State
    stage: Stage | None
    progress: Progress | None
    attempt: int
    waiting: Waiting | None = None
    queue_position: int | None = None

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the fields of a job that change without an event."""
        return cls(
            state=job.state,
            stage=job.stage,
            progress=job.progress,
            attempt=job.attempt,
            waiting=job.waiting,
            queue_position=job.queue_position,
        )
