"""The append-only log of a job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

LAST_SEQUENCE = 2**31 - 1
"""The largest number that a line of the log can have."""


class EventType(StrEnum):
    """What is worth a line in the log."""

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
"""After one of these a job rests."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line; `sequence` counts from 1 within the job."""

    sequence: int
    type: EventType
    created_at: datetime
    attempt: int
    data: dict[str, Any]
