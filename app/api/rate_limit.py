"""Middleware that answers 429 to callers over their rate limit."""

from __future__ import annotations

import math

from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.problems import Problem, problem_response
from app.domain.principal import Principal
from app.services.rate_limit import seconds_to_wait
from app.services.resources import Resources


class RateLimit:
    """Rate limit of authenticated requests; health checks and signed links have no key and pass."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = scope.get("state", {}).get("principal")
        if scope["type"] == "http" and principal is not None:
            resources: Resources = scope["app"].state.resources
            seconds = await run_in_threadpool(seconds_to_wait, resources.limiter, principal)
            if seconds > 0:
                problem = too_often("This key asks too often", seconds)
                await problem_response(scope, problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def too_often(what: str, seconds: float) -> Problem:
    """Return the 429 response for a caller that has to wait."""
    wait = str(math.ceil(seconds))
    detail = f"{what}; try again in {wait} s"
    return Problem(429, "rate_limited", detail, headers={"Retry-After": wait})
