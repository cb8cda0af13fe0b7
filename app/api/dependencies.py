"""Typed parameters of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Header, Query, Request
from pydantic import AwareDatetime

from app.domain.errors import FieldProblem, InvalidRequestError, ScopeMissingError
from app.domain.job import JobFilter
from app.domain.lifecycle import State
from app.domain.principal import PROJECT_PATTERN, Principal, Scope
from app.domain.resource import decode_cursor
from app.services.resources import Resources
from app.services.watching import Watching


# These dependencies are asynchronous because FastAPI runs others in a thread.
async def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


async def _watching(request: Request) -> Watching:
    watching: Watching = request.app.state.watching
    return watching


def requires(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """Return a dependency that requires the scope of the caller's key.

    The authentication middleware has identified the caller by then.
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
LimitQuery = Annotated[int, Query(ge=1, le=100, description="Entries per page.")]
CursorQuery = Annotated[
    str | None, Query(max_length=128, description="`next_cursor` of the previous page.")
]
ExpiresQuery = Annotated[int, Query(ge=0, le=2**53)]
SignatureQuery = Annotated[str, Query(min_length=1, max_length=128)]
"""Query of a signed link, together with `ExpiresQuery`."""
ProjectQuery = Annotated[
    str | None,
    Query(
        pattern=PROJECT_PATTERN,
        description="Project other than the caller's; for the operator only.",
    ),
]
_LABEL = "label."


def _criteria(
    request: Request,
    after: CursorQuery = None,
    state: Annotated[
        list[State] | None,
        Query(max_length=len(State), description="Only jobs in one of these states."),
    ] = None,
    model: Annotated[
        str | None, Query(max_length=512, description="Only jobs of the model with this `ref`.")
    ] = None,
    sweep: Annotated[
        str | None, Query(max_length=64, description="Only jobs of the sweep with this id.")
    ] = None,
    created_after: Annotated[AwareDatetime | None, Query()] = None,
    created_before: Annotated[AwareDatetime | None, Query()] = None,
) -> JobFilter:
    """Return the criteria of a list; `label.KEY=VALUE` may be repeated."""
    labels = {
        name.removeprefix(_LABEL): value
        for name, value in request.query_params.items()
        if name.startswith(_LABEL)
    }
    if any("\0" in text for text in (model or "", *labels, *labels.values())):
        problem = FieldProblem(pointer="query", code="malformed", message="no NUL in a filter")
        raise InvalidRequestError("The filter cannot match anything", fields=(problem,))
    return JobFilter(
        before=decode_cursor(after),
        states=frozenset(state or ()),
        model=model,
        sweep_id=sweep,
        labels=labels,
        created_after=created_after,
        created_before=created_before,
    )


CriteriaQuery = Annotated[JobFilter, Depends(_criteria)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Key of the request; a repetition returns the object of the first one.",
    ),
]
