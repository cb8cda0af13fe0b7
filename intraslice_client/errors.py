"""Errors that the client raises.

ClientError
├── ApiError                  the service answered with a problem document
│   ├── InvalidRequestError   400, 422: `errors` names the invalid fields
│   ├── UnauthorizedError     401: the API key is missing or unknown
│   ├── ForbiddenError        403: the scope of the API key does not allow the request
│   ├── NotFoundError         404, 410: the resource does not exist or was deleted
│   ├── ConflictError         409: the state of the resource does not allow the request
│   ├── RateLimitedError      429, until `patience` ran out
│   └── UnavailableError      502, 503, 504, until `patience` ran out
├── UnreachableError          no response, until `patience` ran out
│   └── StoreUnreachableError no response from the host of a signed link
├── StoreError                the host of a signed link answered with an error
├── UnexpectedResponseError   the response is not one of this API
├── JobNotDoneError           the job ended without success
│   ├── JobFailedError
│   └── JobCancelledError
├── GenerationNotDoneError    a generation failed or was cancelled
├── UploadRejectedError       the service rejected an uploaded model or text
├── DamagedFileError          the SHA-256 of a downloaded file does not match
└── ForgedWebhookError        a webhook's signature does not match or is too old
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from app.domain.job import Job
from app.domain.lifecycle import State

if TYPE_CHECKING:
    from app.domain.generation import Generation

_STORE_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
"""Name of the error in a response of S3."""


class ClientError(Exception):
    """Base class of the client's errors."""


class ApiError(ClientError):
    """An error response of the service.

    Attributes:
        status: HTTP status.
        code: stable name of the problem, such as `job_not_found`.
        problem: the whole problem document (RFC 9457).
        request_id: id of the request in the service's log.
        errors: `pointer`, `code` and `message` of each invalid field.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.problem: Mapping[str, Any] = _problem(response)
        self.code = self.problem.get("code")
        self.request_id = self.problem.get("request_id")
        self.errors: list[dict[str, str]] = self.problem.get("errors") or []
        fields = "".join(f"\n  {field['pointer']}: {field['message']}" for field in self.errors)
        super().__init__(f"{self.status} {self.code}: {self.problem.get('detail')}{fields}")


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    # Another response comes from a proxy, not from the service.
    return problem if isinstance(problem, dict) else {"detail": response.text}


class InvalidRequestError(ApiError):
    """The request is invalid; `errors` names the fields."""


class UnauthorizedError(ApiError):
    """The API key is missing or unknown."""


class ForbiddenError(ApiError):
    """The scope of the API key does not allow the request."""


class NotFoundError(ApiError):
    """The resource does not exist or was deleted."""


class ConflictError(ApiError):
    """The state of the resource does not allow the request."""


class RateLimitedError(ApiError):
    """The rate limit was exceeded for longer than the client's `patience`."""


class UnavailableError(ApiError):
    """The service or its proxy is temporarily unavailable."""


class UnreachableError(ClientError):
    """The service did not respond."""


_STORE_HINT = "set INTRASLICE_STORE_PUBLIC_ENDPOINT, or INTRASLICE_DOWNLOADS=proxy on the server"


class StoreUnreachableError(UnreachableError):
    """The artifact store, to which a signed link of the service leads, did not respond.

    Attributes:
        host: host and port of the link.
    """

    def __init__(self, host: str, reason: str) -> None:
        self.host = host
        super().__init__(
            f"no response from the artifact store at {host}, to which the service's link leads:"
            f" {reason}; {_STORE_HINT}"
        )


class StoreError(ClientError):
    """The artifact store answered a signed link of the service with an error.

    Attributes:
        host: host and port of the link.
        status: HTTP status.
    """

    def __init__(self, host: str, response: httpx.Response) -> None:
        self.host = host
        self.status = response.status_code
        code = _STORE_CODE.search(response.text)
        reason = f" {code[1]}" if code else ""
        super().__init__(
            f"the artifact store at {host} answered a link of the service with HTTP"
            f" {self.status}{reason}; {_STORE_HINT}"
        )


class UnexpectedResponseError(ClientError):
    """The response is not one of this API: the URL may belong to another service."""


class JobNotDoneError(ClientError):
    """The job failed or was cancelled; `job` is its final state."""

    def __init__(self, job: Job) -> None:
        self.job = job
        reason = f": {job.error.code}: {job.error.message}" if job.error else ""
        super().__init__(f"{job.id} is {job.state}{reason}")


class JobFailedError(JobNotDoneError):
    """The job failed; `job.error` has the reason."""


class JobCancelledError(JobNotDoneError):
    """The job was cancelled."""


class GenerationNotDoneError(ClientError):
    """A generation failed or was cancelled; `generation` is its final state."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        error = generation.error
        reason = f": {error.code}: {error.message}" if error else ""
        super().__init__(f"{generation.id} is {generation.state}{reason}")


class UploadRejectedError(ClientError):
    """The service rejected an uploaded model or text."""


class DamagedFileError(ClientError):
    """The SHA-256 of a downloaded file does not match the announced one."""


class ForgedWebhookError(ClientError):
    """The signature of a webhook does not match, or is older than five minutes."""


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
    """Return the error for an error response, whose body must have been read."""
    return _BY_STATUS.get(response.status_code, ApiError)(response)


def job_not_done(job: Job) -> JobNotDoneError:
    """Return the error for a job that failed or was cancelled."""
    return (JobCancelledError if job.state is State.CANCELLED else JobFailedError)(job)
