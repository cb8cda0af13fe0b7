"""Typed parameters of routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Query, Request

from app.domain.lifecycle import State
from app.services.resources import Resources


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]
LimitQuery = Annotated[int, Query(ge=1, le=100, description="Jobs a page.")]
CursorQuery = Annotated[
    str | None, Query(max_length=128, description="`next_cursor` of the page before.")
]
StateQuery = Annotated[State | None, Query(description="Only jobs in this state.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes a repeated request answer with the job of the first.",
    ),
]
