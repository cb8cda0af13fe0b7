"""Middleware that counts, times and, with tracing on, traces every request."""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry.metrics import REQUEST_SECONDS
from app.telemetry.traces import span

_TRACEPARENT = "traceparent"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
_UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})
"""Paths that machines request every few seconds; they are not traced."""


class Measurement:
    """Measurement as the outermost layer, which includes all time that the client waits."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in _UNTRACED:
            await self._measure(scope, receive, send)
            return
        parent = Headers(scope=scope).get(_TRACEPARENT)
        with span(f"HTTP {_method(scope)}", parent=parent) as request_span:
            status = await self._measure(scope, receive, send)
            if request_span is not None:
                request_span.update_name(f"{_method(scope)} {_route(scope)}")
                request_span.set_attribute("http.route", _route(scope))
                request_span.set_attribute("http.response.status_code", status)

    async def _measure(self, scope: Scope, receive: Receive, send: Send) -> int:
        started = time.perf_counter()
        status, seconds = 500, 0.0

        async def watch(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - started
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            labels = (_method(scope), _route(scope), str(status))
            REQUEST_SECONDS.labels(*labels).observe(seconds or time.perf_counter() - started)
        return status


def _method(scope: Scope) -> str:
    """Return the method if it is known, so that clients cannot create unlimited labels."""
    method: str = scope["method"]
    return method if method in _METHODS else _OTHER


def _route(scope: Scope) -> str:
    """Return the path's template, because paths with ids would be unlimited labels."""
    return getattr(scope.get("route"), "path", _OTHER)
