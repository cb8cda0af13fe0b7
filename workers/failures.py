"""Which failures are worth another attempt: the only place that decides it."""

from __future__ import annotations

import signal

from app.domain.job import Job, JobError
from app.services.claims import WORKER_LOST
from intraslice_core.progress import Stage

CANCELLED = "cancelled"
OUT_OF_MEMORY = "out_of_memory"
CHILD_CRASHED = "child_crashed"
INTERNAL = "internal_error"

RETRYABLE = frozenset(
    {
        WORKER_LOST,
        # Memory is often taken by a neighbour that will be gone.
        OUT_OF_MEMORY,
        CHILD_CRASHED,
        "insufficient_disk",
        "store_unavailable",
        "publication_failed",
    }
)
"""Everything else would end the same way again: wrong models, wrong settings, bad numbers."""


def job_error(code: str, message: str, *, stage: Stage | None = None) -> JobError:
    return JobError(code=code, message=message, stage=stage, retryable=code in RETRYABLE)


def death_error(exit_code: int, stage: Stage | None, last_words: str) -> JobError:
    """What a child's silent end means; negative exit codes are signals."""
    if exit_code == -signal.SIGKILL:
        return job_error(
            OUT_OF_MEMORY, "the system killed the job, most likely for its memory", stage=stage
        )
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    detail = f": {last_words}" if last_words else ""
    return job_error(CHILD_CRASHED, f"the job's process ended by {how}{detail}", stage=stage)


def try_again(job: Job, error: JobError) -> bool:
    return error.retryable and job.attempt < job.max_attempts
