"""HTTP requests with retries, parsed responses and pages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from intraslice_client._responses import parsed, request_error
from intraslice_client._retries import Backoff, may_retry

Body = TypeVar("Body", bound=BaseModel)

_IDEMPOTENT_METHODS = frozenset({"GET", "PUT", "DELETE"})


class Transport:
    """Connection to one service.

    Args:
        http: httpx client with the base URL and the API key of the service.
        patience: seconds for which a request is retried.
    """

    def __init__(self, http: httpx.Client, patience: float) -> None:
        self.http = http
        self.patience = patience

    def send(
        self,
        method: str,
        path: str,
        *,
        idempotent: bool | None = None,
        http: httpx.Client | None = None,
        **arguments: Any,
    ) -> httpx.Response:
        """Send a request, with retries, and return the successful response.

        Args:
            method: HTTP method.
            path: path relative to the base URL.
            idempotent: True if repeating the request has no further effect; None: the method
                decides.
            http: httpx client for another host; None: the client of the service.
            **arguments: further arguments of `httpx.Client.request`.

        Raises:
            ApiError: if the service responds with an error.
            UnreachableError: if the service does not respond within `patience` seconds.
            StoreError: if the host of a signed link responds with an error.
        """
        if idempotent is None:
            idempotent = method in _IDEMPOTENT_METHODS
        backoff = Backoff(self.patience)
        while True:
            outcome = self._try(http or self.http, method, path, arguments)
            if not isinstance(outcome, httpx.TransportError) and not outcome.is_error:
                return outcome
            self.delay_retry(outcome, backoff, may_retry(outcome, idempotent=idempotent))

    def _try(
        self, http: httpx.Client, method: str, path: str, arguments: dict[str, Any]
    ) -> httpx.Response | httpx.TransportError:
        try:
            return http.request(method, path, **arguments)
        except httpx.TransportError as error:
            return error

    def delay_retry(
        self, outcome: httpx.Response | httpx.TransportError, backoff: Backoff, retryable: bool
    ) -> None:
        """Wait before a request is sent again.

        Raises:
            ClientError: if the request may not be retried or the patience of `backoff` has run out.
        """
        delay = backoff.next_delay(outcome) if retryable else None
        if delay is None:
            raise request_error(outcome, self.http.build_request("GET", "/").url)
        time.sleep(delay)

    def fetch(self, body_type: type[Body], method: str, path: str, **arguments: Any) -> Body:
        """Send a request and return the parsed body of the response."""
        response = self.send(method, path, **arguments)
        return parsed(body_type, response)

    def pages(
        self, body_type: type[Body], path: str, query: dict[str, Any] | None = None
    ) -> Iterator[Body]:
        """Yield every page of a list."""
        parameters = {"limit": 100, **(query or {})}
        while True:
            page = self.fetch(body_type, "GET", path, params=parameters)
            yield page
            cursor = getattr(page, "next_cursor", None)
            if cursor is None:
                return
            parameters["after"] = cursor
