"""Middleware that writes every mutating call to the audit log."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.audit import Attempt
from app.domain.identifiers import looks_like_id
from app.domain.principal import Principal
from app.services import audit

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ESTIMATES = frozenset({"/v1/jobs:validate"})
"""Routes that change nothing by any method. Forms call them as their user types."""
_LONGEST_METHOD = 16
UNKNOWN_ROUTE = "(none)"


class AuditTrail:
    """Audit of calls with a key; in front of authentication, so that rejected ones are included.

    The line is written when the status is known and before the client receives it.

    Args:
        app: what answers.
        templates: every route's path with the pattern it matches. Looked up here and not taken
            from the router, because rejections come before the router has seen the path.
    """

    def __init__(self, app: ASGIApp, templates: Sequence[tuple[str, re.Pattern[str]]]) -> None:
        self._app = app
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _READING:
            await self._app(scope, receive, send)
            return
        answered = False

        async def send_after_writing(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                location = Headers(raw=message["headers"]).get("location")
                await self._write(scope, message["status"], location)
            await send(message)

        try:
            await self._app(scope, receive, send_after_writing)
        except Exception:
            if not answered:
                await self._write(scope, 500, None)
            raise

    async def _write(self, scope: Scope, status: int, location: str | None) -> None:
        principal: Principal | None = scope.get("state", {}).get("principal")
        if principal is None:
            return
        route, object_id = self._target(scope["path"])
        if route in _ESTIMATES and status not in (401, 403):
            return
        attempt = Attempt(
            project_id=principal.project_id,
            key_id=principal.key_id,
            method=scope["method"][:_LONGEST_METHOD],
            route=route,
            object_id=object_id or _made(location),
            status=status,
            request_id=scope["state"]["request_id"],
        )
        await run_in_threadpool(audit.record, scope["app"].state.resources, attempt)

    def _target(self, path: str) -> tuple[str, str | None]:
        """Return the template of the path, and the id in it.

        The path itself is never written: it may hold a secret by mistake.
        """
        for template, pattern in self._templates:
            match = pattern.fullmatch(path)
            if match is not None:
                return template, next(filter(looks_like_id, match.groups()), None)
        return UNKNOWN_ROUTE, None


def _made(location: str | None) -> str | None:
    """Return the id of a created object from the response's Location."""
    last = (location or "").rpartition("/")[2]
    return last if looks_like_id(last) else None
