"""Middlewares for every request: an id, a line in the log, a limit of its body."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.adapters.signed_urls import is_part_path
from app.api.problems import Problem, problem_response
from app.domain.api_key import without_secrets
from app.telemetry import get_logger

REQUEST_ID_HEADER = "x-request-id"

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = get_logger(__name__)


class RequestContext:
    """Request id in response and log; the caller's id is used if it is well-formed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        proposed = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = proposed if _ACCEPTED_ID.fullmatch(proposed) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                headers.setdefault("x-content-type-options", "nosniff")
                if scope["app"].state.draining.is_set():
                    # A proxy must not send its next request on a connection about to be closed.
                    headers["connection"] = "close"
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                _log.info(
                    "request",
                    method=scope["method"],
                    path=without_secrets(scope["path"]),
                    client=scope["client"][0] if scope.get("client") else None,
                    status=status,
                    seconds=round(time.perf_counter() - started, 4),
                )


class BodyLimit:
    """Limit of the body's size, declared or not, enforced before it fills the memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_part_path(scope["path"]):
            # Parts of uploads are limited by their announced size, and streamed to the store.
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limit:
            await self._reject(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            await self._reject(scope, receive, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the whole body; None if it exceeds the limit."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._limit:
                return None
            if not message.get("more_body", False):
                return bytes(body)

    async def _reject(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"The body is larger than {self._limit} bytes"
        response = problem_response(scope, Problem(413, "body_too_large", detail))
        await response(scope, receive, send)
