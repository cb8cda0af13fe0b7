"""Parsed bodies of responses, and the errors for responses without one."""

from __future__ import annotations

from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from intraslice_client.errors import (
    StoreError,
    StoreUnreachableError,
    UnexpectedResponseError,
    UnreachableError,
    api_error,
)

Body = TypeVar("Body", bound=BaseModel)


def parsed(body_type: type[Body], response: httpx.Response) -> Body:
    """Return the parsed body of a successful response.

    Raises:
        UnexpectedResponseError: if it is no body of this type.
    """
    try:
        return body_type.model_validate_json(response.content)
    except ValidationError as error:
        raise UnexpectedResponseError(
            f"{response.request.method} {response.url.copy_with(query=None)} answered HTTP"
            f" {response.status_code} without a {body_type.__name__}: check that the URL is an"
            " IntraSlice service of this version"
        ) from error


def request_error(outcome: httpx.Response | httpx.TransportError, service: httpx.URL) -> Exception:
    """Return the client's error for an error response or a request without a response.

    Args:
        outcome: the response, or the error of a request without one.
        service: URL of the service; other hosts are those of signed links.
    """
    host = _foreign_host(outcome, service)
    if not isinstance(outcome, httpx.TransportError):
        return api_error(outcome) if host is None else StoreError(host, outcome)
    reason = str(outcome) or type(outcome).__name__
    error = (
        UnreachableError(f"no response from the service: {reason}")
        if host is None
        else StoreUnreachableError(host, reason)
    )
    error.__cause__ = outcome
    return error


def _foreign_host(outcome: httpx.Response | httpx.TransportError, service: httpx.URL) -> str | None:
    """Return host and port of a request to another host than the service, else None."""
    try:
        url = outcome.request.url
    except RuntimeError:  # an error that was raised before there was a request
        return None
    same = (url.scheme, url.host, url.port) == (service.scheme, service.host, service.port)
    return None if same or not url.host else url.netloc.decode("ascii")
