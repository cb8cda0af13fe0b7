"""Authentication middleware: every request needs a key, except those to public paths.

An address that keeps sending wrong keys has to wait. Issued keys are accepted even then: they
cannot be guessed, and their holder may share the address with an attacker. The operator key may
be short, so it is rejected until the limit resets.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qs

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.adapters.signed_urls import is_signed_path
from app.api.operator_keys import OperatorKeys
from app.api.problems import Problem, problem_response, service_problem
from app.api.rate_limit import too_often
from app.domain.errors import ServiceError
from app.domain.principal import OPERATOR, Principal
from app.domain.principal import Scope as KeyScope
from app.services import keys
from app.services.resources import Resources
from app.settings import Settings

_OPEN = frozenset({"/", "/docs", "/livez", "/openapi.json", "/readyz"})
_OPEN_BELOW = ("/dashboard/", "/docs/")
"""Files of the dashboard and of the API reference, which ask for a key themselves."""
_METRICS = "/metrics"
_SCRAPER = Principal(project_id="", scopes=frozenset({KeyScope.READ}))
"""Principal of metrics requests where `metrics_open` is set; owns nothing."""

_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Authentication:
    """Authentication in front of the router, so that every new route requires a key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._off = settings.auth == "off"
        self._metrics_open = settings.metrics_open
        self._operator_keys = OperatorKeys(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise PermissionError("only HTTP is served")
        state = scope.setdefault("state", {})
        try:
            # Signed links and health checks need no key.
            principal = None if _is_open(scope) else await self._principal(scope)
        except ServiceError as error:
            await problem_response(scope, service_problem(error))(scope, receive, send)
            return
        state["principal"] = principal
        if _is_open(scope) or (principal is not None and principal.scopes):
            await self._app(scope, receive, send)
            return
        problem = await self._count_wrong_key(scope) or _unauthenticated(scope, principal)
        await problem_response(scope, problem)(scope, receive, send)

    async def _principal(self, scope: Scope) -> Principal | None:
        """Return the caller; without scopes if its key is revoked or expired."""
        if self._off:
            return OPERATOR
        if self._metrics_open and scope["path"] == _METRICS:
            return _SCRAPER
        secret = _presented(scope)
        if not secret:
            return None
        resources: Resources = scope["app"].state.resources
        address = _address(scope)
        seconds = resources.failed_authentications.seconds_to_wait(address)
        if not seconds and self._operator_keys.accept(secret, address):
            return OPERATOR
        key = keys.recall(resources, secret)
        if key is None:
            # In a thread: the event loop must not wait for the database.
            key = await run_in_threadpool(keys.identify, resources, secret)
        return key.principal(datetime.now(UTC)) if key is not None else None

    async def _count_wrong_key(self, scope: Scope) -> Problem | None:
        """Count a wrong key; return a 429 problem if the address has sent too many."""
        if not _presented(scope):
            return None
        resources: Resources = scope["app"].state.resources
        seconds = await run_in_threadpool(resources.failed_authentications.count, _address(scope))
        return too_often("Too many wrong keys from this address", seconds) if seconds else None


def _presented(scope: Scope) -> str:
    """Return the bearer token; empty if there is none."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _unauthenticated(scope: Scope, principal: Principal | None) -> Problem:
    if principal is not None:
        detail = "This key has expired or was revoked"
    elif _presented(scope):
        detail = "This API key is not known; it may be mistyped, or of another service"
    else:
        detail = "Send an API key as a bearer token in the Authorization header"
    return Problem(401, "unauthenticated", detail, headers=_CHALLENGE)


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return path in _OPEN or path.startswith(_OPEN_BELOW) or _carries_signature(scope)


def _carries_signature(scope: Scope) -> bool:
    """Return whether the request is by a signed link, whose signature the route checks."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return is_signed_path(scope["path"]) and "signature" in query
