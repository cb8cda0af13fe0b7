"""Middleware that serves HEAD wherever a route serves GET, as its headers without its body."""

from __future__ import annotations

import anyio
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEAD = "HEAD"
_FROM_ROUTER = ("route", "endpoint", "path_params")
"""Entries of the scope that the router adds, for the middlewares in front of it."""


class HeadRequests:
    """HEAD as GET whose body is dropped; a streamed body is cancelled once its headers are sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != _HEAD:
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["head"] = True
        # A copy, because servers compare the method with the body that they send.
        inner = {**scope, "method": "GET"}
        with anyio.CancelScope() as rest:
            await self._app(inner, receive, _HeadersOnly(send, rest))
        scope.update({name: inner[name] for name in _FROM_ROUTER if name in inner})


class _HeadersOnly:
    """`send` of an application that drops the body."""

    def __init__(self, send: Send, rest: anyio.CancelScope) -> None:
        self._send = send
        self._rest = rest

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            is_stream = all(name.lower() != b"content-length" for name, _ in message["headers"])
        else:
            is_stream = message.get("more_body", False)
        if is_stream:
            self._rest.cancel()


def is_head(request: Request) -> bool:
    """Return True if the client wants the headers only."""
    return bool(request.scope["state"].get("head"))
