"""The append-only log of a job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class EventType(StrEnum):
    """What is worth a line in the log."""

    QUEUED = "queued"
    STARTED = "started"
    PROGRESS = "progress"
    CANCEL_REQUESTED = "cancel_requested"
    REQUEUED = "requeued"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line; `sequence` counts from 1 within the job."""

    sequence: int
    type: EventType
    created_at: datetime
    attempt: int
    data: dict[str, Any]
