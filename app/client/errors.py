"""What can go wrong between a client and the service.

ClientError
├── ApiError                  the service answered with a problem document
│   ├── InvalidRequestError   400, 422: `errors` name the fields at fault
│   ├── UnauthorizedError     401: no key, or a wrong one
│   ├── ForbiddenError        403: the key's scope does not allow it
│   ├── NotFoundError         404, 410: there is no such thing, or not any more
│   ├── ConflictError         409: the state of the thing does not allow it
│   ├── RateLimitedError      429, for longer than the client's patience
│   └── UnavailableError      502, 503, 504, for longer than that
├── UnreachableError          no answer at all, for longer than that
├── JobNotDoneError           the job ended otherwise than well
│   ├── JobFailedError
│   └── JobCancelledError
├── UploadRefusedError        what was sent is not what was announced, or no model
├── DamagedFileError          a download is not what its SHA-256 says
└── ForgedWebhookError        a request was not signed with the webhook's secret, or too long ago
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from app.domain.job import Job
from app.domain.lifecycle import State


class ClientError(Exception):
    """Something did not come back as it should."""


class ApiError(ClientError):
    """The service refused; `code` is stable, `request_id` finds the line in its log."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        try:
            self.problem: Mapping[str, Any] = response.json()
        except ValueError:
            # A proxy in between answered, not the service.
            self.problem = {"detail": response.text}
        self.code = self.problem.get("code")
        self.request_id = self.problem.get("request_id")
        self.errors: list[dict[str, str]] = self.problem.get("errors") or []
        """`pointer`, `code` and `message` of each field at fault."""
        fields = "".join(f"\n  {one['pointer']}: {one['message']}" for one in self.errors)
        super().__init__(f"{self.status} {self.code}: {self.problem.get('detail')}{fields}")


class InvalidRequestError(ApiError):
    """The request cannot be accepted; see `errors`."""


class UnauthorizedError(ApiError):
    """There is no key, or it is not one of the service's."""


class ForbiddenError(ApiError):
    """The key does not allow this."""


class NotFoundError(ApiError):
    """There is no such thing, or not any more."""


class ConflictError(ApiError):
    """The state of the thing does not allow this."""


class RateLimitedError(ApiError):
    """Too many requests."""


class UnavailableError(ApiError):
    """The service, or what stands before it, is not there just now."""


class UnreachableError(ClientError):
    """Nobody answered."""


class JobNotDoneError(ClientError):
    """The job failed or was cancelled."""

    def __init__(self, job: Job) -> None:
        self.job = job
        reason = f": {job.error.code}: {job.error.message}" if job.error else ""
        super().__init__(f"{job.id} is {job.state}{reason}")


class JobFailedError(JobNotDoneError):
    """The job failed; `job.error` says why."""


class JobCancelledError(JobNotDoneError):
    """Somebody cancelled the job."""


class UploadRefusedError(ClientError):
    """The service did not take an upload."""


class DamagedFileError(ClientError):
    """A download's SHA-256 is not the announced one."""


class ForgedWebhookError(ClientError):
    """The request does not come from the service, or is a copy of an old one."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: NotFoundError,
    422: InvalidRequestError,
    429: RateLimitedError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


def api_error(response: httpx.Response) -> ApiError:
    """The error that a refusal is; its body must have been read."""
    return _BY_STATUS.get(response.status_code, ApiError)(response)


def not_done(job: Job) -> JobNotDoneError:
    """The error that a job's end is."""
    return (JobCancelledError if job.state is State.CANCELLED else JobFailedError)(job)
