"""Status of the service, as its caller sees it."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from app.domain.generation import Playground
from app.domain.lifecycle import State
from app.domain.principal import Scope
from app.domain.resource import ApiModel
from app.domain.worker import Worker


class HandOffTarget(StrEnum):
    """Target of a registry hand-off."""

    MLFLOW = "mlflow"
    HUB = "hub"


class Service(ApiModel):
    """The caller's project and scopes, the load of the service, and its workers."""

    object: Literal["service"] = "service"
    version: str
    project: str
    scopes: tuple[Scope, ...] = Field(description="Scopes of the caller's key.")
    jobs: dict[State, int] = Field(
        description="Number of the project's jobs in each state that is not terminal."
    )
    busy_workers: int = Field(description="Workers of the deployment that run a job.")
    workers: int | None = Field(
        default=None,
        description="Live workers of the deployment; null if the broker is unavailable.",
    )
    hand_off_targets: tuple[HandOffTarget, ...] = Field(
        default=(),
        description="Registries and hubs to which succeeded jobs can be handed off.",
    )
    fleet: tuple[Worker, ...] = Field(
        default=(),
        description="Registered workers with their devices and what these run, oldest first.",
    )
    playground: Playground | None = Field(
        default=None, description="Limits of the playground; null if it is off."
    )
