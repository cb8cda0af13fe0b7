"""Typed parameters of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Header, Query, Request

from app.domain.errors import ScopeMissingError
from app.domain.lifecycle import State
from app.domain.principal import PROJECT_PATTERN, Principal, Scope
from app.services.resources import Resources
from app.services.watching import Watching


# Dependencies are asynchronous although they wait for nothing: others go through a thread.
async def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


async def _watching(request: Request) -> Watching:
    watching: Watching = request.app.state.watching
    return watching


def requires(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that lets pass whoever's key has the scope.

    A route states here what it needs; the authentication in front has found out who asks.
    """

    async def principal(request: Request) -> Principal:
        holder: Principal | None = request.scope["state"]["principal"]
        if holder is None or scope not in holder.scopes:
            raise ScopeMissingError(f"This needs a key with the scope {scope!r}")
        return holder

    return principal


Reader = Annotated[Principal, Depends(requires(Scope.READ))]
Writer = Annotated[Principal, Depends(requires(Scope.WRITE))]
Admin = Annotated[Principal, Depends(requires(Scope.ADMIN))]
ResourcesDep = Annotated[Resources, Depends(_resources)]
WatchingDep = Annotated[Watching, Depends(_watching)]
LimitQuery = Annotated[int, Query(ge=1, le=100, description="Entries a page.")]
CursorQuery = Annotated[
    str | None, Query(max_length=128, description="`next_cursor` of the page before.")
]
StateQuery = Annotated[State | None, Query(description="Only jobs in this state.")]
SweepQuery = Annotated[
    str | None, Query(max_length=64, description="Only jobs of this sweep, by its id.")
]
ProjectQuery = Annotated[
    str | None,
    Query(
        pattern=PROJECT_PATTERN,
        description="Another project than the key's own; the operator only.",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes a repeated request answer with the job of the first.",
    ),
]
