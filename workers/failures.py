"""Errors of jobs, and which of them are retried."""

from __future__ import annotations

import signal

from app.domain.errors import InvalidRequestError
from app.domain.job import Job, JobError
from app.services.claims import WORKER_LOST
from intraslice_core.progress import Stage

CANCELLED = "cancelled"
OUT_OF_MEMORY = "out_of_memory"
CHILD_CRASHED = "child_crashed"
INTERNAL = "internal_error"
OUT_OF_DEVICE_MEMORY = "out_of_device_memory"

RETRYABLE = frozenset(
    {
        WORKER_LOST,
        # Often another process used the memory and has ended by the next attempt.
        OUT_OF_MEMORY,
        # Another worker may have a larger device, or this one more of its memory free.
        "out_of_device_memory",
        CHILD_CRASHED,
        "rank_failed",
        "insufficient_disk",
        "database_unavailable",
        "store_unavailable",
        "publication_failed",
    }
)
"""Codes worth another attempt; wrong models, settings and numbers would fail again."""


_DIFFERENT_LISTS = (
    "compare the allow-lists of this worker with the API's, and check that the files exist"
)
_DIFFERENT_LIMITS = "compare the limits of this worker with the API's"
_DIFFERENT_MODEL = "correct the field; the API may not have read the same model"
_ADMISSION_HINTS = {
    "package_not_allowed": _DIFFERENT_LISTS,
    "hub_not_allowed": _DIFFERENT_LISTS,
    "path_not_allowed": _DIFFERENT_LISTS,
    "not_found": _DIFFERENT_LISTS,
    "too_many_tokens": _DIFFERENT_LIMITS,
    "too_long": _DIFFERENT_LIMITS,
}


def job_error(code: str, message: str, *, stage: Stage | None = None) -> JobError:
    return JobError(code=code, message=message, stage=stage, retryable=code in RETRYABLE)


def admission_error(error: InvalidRequestError) -> JobError:
    """Return the error of a job that this worker rejects, with the code of its first field.

    The API has admitted the job, so the worker's settings or files differ from the API's.
    """
    if not error.fields:
        return JobError(code=error.code, message=error.message)
    first = error.fields[0]
    return JobError(
        code=first.code,
        message="; ".join(f"{problem.pointer}: {problem.message}" for problem in error.fields),
        field=first.pointer,
        hint=_ADMISSION_HINTS.get(first.code, _DIFFERENT_MODEL),
    )


def exit_error(exit_code: int, stage: Stage | None, last_line: str) -> JobError:
    """Return the error of a child that exited without a message.

    Args:
        exit_code: negative for a signal.
        stage: the last stage it reported.
        last_line: the last plain line of its stderr; may be empty.
    """
    if exit_code == -signal.SIGKILL:
        return job_error(
            OUT_OF_MEMORY,
            "the engine process was killed (SIGKILL), most likely for lack of memory",
            stage=stage,
        )
    cause = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    detail = f": {last_line}" if last_line else ""
    return job_error(CHILD_CRASHED, f"the engine process ended with {cause}{detail}", stage=stage)


def should_retry(job: Job, error: JobError) -> bool:
    return error.retryable and job.attempt < job.max_attempts
