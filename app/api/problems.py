"""RFC 9457 problem documents: the one table from errors to HTTP statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.domain.errors import (
    OUTAGE_ERRORS,
    ArtifactsExpiredError,
    FieldProblem,
    IllegalTransitionError,
    InvalidRequestError,
    LinkRejectedError,
    NotAcceptableError,
    NotFoundError,
    PlaygroundDisabledError,
    PreconditionFailedError,
    ResourceBusyError,
    ScopeMissingError,
    ServiceError,
    TooManyGenerationsError,
    UnavailableError,
)
from app.telemetry import get_logger

MEDIA_TYPE = "application/problem+json"

# First match wins.
STATUSES: tuple[tuple[type[ServiceError], int], ...] = (
    (NotFoundError, 404),
    (ArtifactsExpiredError, 410),
    (ScopeMissingError, 403),
    (PlaygroundDisabledError, 403),
    (LinkRejectedError, 403),
    (NotAcceptableError, 406),
    (PreconditionFailedError, 412),
    (IllegalTransitionError, 409),
    (ResourceBusyError, 409),
    (InvalidRequestError, 422),
    (TooManyGenerationsError, 429),
    (UnavailableError, 503),
)
_RETRY_AFTER_SECONDS = "5"
_log = get_logger(__name__)


class ProblemDetails(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str | None
    errors: list[dict[str, str]] = []


@dataclass(frozen=True)
class Problem:
    """A problem document without the fields of its request."""

    status: int
    code: str
    detail: str
    errors: Sequence[Mapping[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    extension: Mapping[str, Any] = field(default_factory=dict)


def problem_response(scope: Scope, problem: Problem) -> JSONResponse:
    request_id = scope.get("state", {}).get("request_id")
    content: dict[str, Any] = {
        "type": f"urn:intraslice:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": scope["path"],
        "code": problem.code,
        "request_id": request_id,
        **problem.extension,
    }
    if problem.errors:
        content["errors"] = list(problem.errors)
    headers = dict(problem.headers)
    if request_id:
        headers["x-request-id"] = request_id
    if problem.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers.setdefault("Retry-After", _RETRY_AFTER_SECONDS)
    return JSONResponse(content, problem.status, headers=headers, media_type=MEDIA_TYPE)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unexpected)


def _service_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ServiceError):
        raise TypeError(f"no service error: {error!r}")
    return problem_response(request.scope, service_problem(error))


def service_problem(error: ServiceError) -> Problem:
    """Return the problem document of a service error."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    # The adapters log unavailable servers, at most once a minute.
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, OUTAGE_ERRORS):
        _log.error("service_error", code=error.code, exc_info=error)
    fields = error.fields if isinstance(error, InvalidRequestError) else ()
    errors = [_field_problem(problem) for problem in fields]
    return Problem(status, error.code, error.public_message, errors=errors)


def _field_problem(problem: FieldProblem) -> dict[str, str]:
    return {"pointer": problem.pointer, "code": problem.code, "message": problem.message}


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise TypeError(f"no validation error: {error!r}")
    errors = [
        {
            "pointer": _pointer(detail["loc"], detail["type"]),
            "code": str(detail["type"]),
            # The input is not repeated: it may be long, or a secret in the wrong place.
            "message": str(detail["msg"]),
        }
        for detail in error.errors()
    ]
    return problem_response(
        request.scope,
        Problem(422, "invalid_request", "The request does not have the right form", errors=errors),
    )


def _pointer(location: Sequence[str | int], kind: str) -> str:
    """Return a JSON pointer into the body, or for other parts a form like `query:limit`."""
    place, *path = location
    if place != "body":
        return f"{place}:{'.'.join(map(str, path))}"
    if kind == "json_invalid":
        return ""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _http_exception(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise TypeError(f"no HTTP exception: {error!r}")
    status = HTTPStatus(error.status_code)
    problem = Problem(
        error.status_code,
        status.phrase.lower().replace(" ", "_"),
        str(error.detail),
        headers=error.headers or {},
    )
    return problem_response(request.scope, problem)


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """Log the traceback; the client gets the request id to find it by."""
    _log.error("unexpected_error", exc_info=error)
    detail = "Something went wrong here; the request id leads to the details in our log"
    return problem_response(request.scope, Problem(500, "internal_error", detail))
