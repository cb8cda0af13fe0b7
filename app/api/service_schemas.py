"""The service at a glance, on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from app.domain.lifecycle import State
from app.domain.principal import Principal, Scope
from app.services.monitoring import Overview
from intraslice_core import __version__


class ServiceOut(BaseModel):
    """Who asks, and how much there is to do."""

    object: Literal["service"] = "service"
    version: str
    project: str
    scopes: list[Scope] = Field(description="what the asking key allows")
    jobs: dict[State, int] = Field(description="the project's, in every state that is no end")
    busy_workers: int = Field(description="of the deployment, at work on a job")
    workers: int | None = Field(
        default=None, description="of the deployment, heard lately; null: the broker is away"
    )

    @classmethod
    def of(cls, found: Overview, principal: Principal) -> ServiceOut:
        return cls(
            version=__version__,
            project=principal.project_id,
            scopes=[scope for scope in Scope if scope in principal.scopes],
            jobs=found.jobs,
            busy_workers=found.busy_workers,
            workers=found.workers,
        )
