"""What a job's event stream says besides the events of the log."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel

from app.domain.job import Job, Progress
from app.domain.lifecycle import State
from intraslice_core.progress import Stage

LIVE = "live"
"""The `event` of such a message."""


class JobLive(BaseModel):
    """Where a job is at this moment."""

    state: State
    stage: Stage | None
    progress: Progress | None
    attempt: int

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(state=job.state, stage=job.stage, progress=job.progress, attempt=job.attempt)
