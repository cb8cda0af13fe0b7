"""Status of the service, as its caller sees it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.domain.lifecycle import State
from app.domain.principal import Scope
from app.domain.resource import ApiModel


class Service(ApiModel):
    """Who asks, and how much there is to do."""

    object: Literal["service"] = "service"
    version: str
    project: str
    scopes: tuple[Scope, ...] = Field(description="what the asking key allows")
    jobs: dict[State, int] = Field(description="the project's, in every state that is no end")
    busy_workers: int = Field(description="of the deployment, at work on a job")
    workers: int | None = Field(
        default=None, description="of the deployment, heard lately; null: the broker is away"
    )
