"""Who may ask: nobody, unless they hold the key."""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.adapters.signed_urls import DOWNLOADS
from app.api.problems import Problem, problem_response
from app.domain.principal import OPERATOR, Principal
from app.domain.principal import Scope as KeyScope
from app.settings import Settings

_OPEN = frozenset({"/livez", "/readyz"})
_METRICS = "/metrics"
_SCRAPER = Principal(project_id="", scopes=frozenset({KeyScope.READ}))
"""Whoever collects metrics where `metrics_open` is set; owns nothing."""


class Authentication:
    """In front of the router, so that a new route is closed before anybody thinks of it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._off = settings.auth == "off"
        self._metrics_open = settings.metrics_open
        key = settings.api_key
        self._key = key.get_secret_value().encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        principal = self._principal(scope)
        if principal is not None or _is_open(scope):
            scope.setdefault("state", {})["principal"] = principal
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise PermissionError("only HTTP is served")
        detail = "Send the API key as a bearer token in the Authorization header"
        problem = Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})
        await problem_response(scope, problem)(scope, receive, send)

    def _principal(self, scope: Scope) -> Principal | None:
        if self._off or self._holds_key(scope):
            return OPERATOR
        return _SCRAPER if self._metrics_open and scope["path"] == _METRICS else None

    def _holds_key(self, scope: Scope) -> bool:
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if self._key is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._key)


def _is_open(scope: Scope) -> bool:
    return scope["path"] in _OPEN or _carries_signature(scope)


def _carries_signature(scope: Scope) -> bool:
    """A signed link is its own permission; the route checks it."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return scope["path"].startswith(f"{DOWNLOADS}/") and "signature" in query
