"""Requests that are sent again where that is safe and may help."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from app.client.errors import UnreachableError, api_error
from app.client.retries import Pauses, may_repeat

Answer = TypeVar("Answer", bound=BaseModel)

_REPEATABLE = frozenset({"GET", "PUT", "DELETE"})


class AsyncTransport:
    """One service, and how long it may be away.

    Args:
        http: knows its address and the key.
        patience: seconds for which a request is sent again.
    """

    def __init__(self, http: httpx.AsyncClient, patience: float) -> None:
        self.http = http
        self.patience = patience

    async def send(
        self, method: str, path: str, *, repeatable: bool | None = None, **arguments: Any
    ) -> httpx.Response:
        """The answer, if it is one that was hoped for.

        Args:
            method: of HTTP.
            path: below the service's address.
            repeatable: whether doing it twice is doing it once; None: as the method has it.
            **arguments: as httpx takes them.

        Raises:
            ApiError: if the service refuses.
            UnreachableError: if there is no answer.
        """
        if repeatable is None:
            repeatable = method in _REPEATABLE
        pauses = Pauses(self.patience)
        while True:
            outcome = await self._try(method, path, arguments)
            if not isinstance(outcome, httpx.TransportError) and not outcome.is_error:
                return outcome
            again = may_repeat(outcome, repeatable=repeatable)
            pause = pauses.after(outcome) if again else None
            if pause is None:
                raise failure(outcome)
            await asyncio.sleep(pause)

    async def _try(
        self, method: str, path: str, arguments: dict[str, Any]
    ) -> httpx.Response | httpx.TransportError:
        try:
            return await self.http.request(method, path, **arguments)
        except httpx.TransportError as error:
            return error

    async def ask(self, kind: type[Answer], method: str, path: str, **arguments: Any) -> Answer:
        """The answer's body."""
        response = await self.send(method, path, **arguments)
        return kind.model_validate_json(response.content)

    async def pages(
        self, kind: type[Answer], path: str, query: dict[str, Any] | None = None
    ) -> AsyncIterator[Answer]:
        """Every page of a list."""
        asked = {"limit": 100, **(query or {})}
        while True:
            page = await self.ask(kind, "GET", path, params=asked)
            yield page
            cursor = getattr(page, "next_cursor", None)
            if cursor is None:
                return
            asked["after"] = cursor


def failure(outcome: httpx.Response | httpx.TransportError) -> Exception:
    """The client's error for what came instead of a good answer."""
    if not isinstance(outcome, httpx.TransportError):
        return api_error(outcome)
    error = UnreachableError(f"no answer: {outcome or type(outcome).__name__}")
    error.__cause__ = outcome
    return error
