"""Middleware that serves HEAD wherever a route serves GET, as its headers without its body."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEAD = "HEAD"
_FROM_ROUTER = ("route", "endpoint", "path_params")
"""Entries of the scope that the router adds, for the middlewares in front of it."""


class HeadRequests:
    """HEAD as GET whose body is dropped; a streamed body is ended once its headers are sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != _HEAD:
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["head"] = True
        # A copy, because servers compare the method with the body that they send.
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, _without_body(send))
        except* _HeadersSentError:
            pass
        finally:
            scope.update({name: inner[name] for name in _FROM_ROUTER if name in inner})


class _HeadersSentError(Exception):
    """The client has all it wants: a stream need not go on."""


def _without_body(send: Send) -> Send:
    """Return a `send` that drops the body, and ends a stream."""

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            is_stream = all(name.lower() != b"content-length" for name, _ in message["headers"])
        else:
            is_stream = message.get("more_body", False)
        if is_stream:
            raise _HeadersSentError

    return send_headers


def is_head(request: Request) -> bool:
    """Return True if the client wants the headers only."""
    return bool(request.scope["state"].get("head"))
