"""Hand-offs as clients see them."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from app.domain.hand_off import HandOff, HandOffState, HandOffTarget


class HandOffOut(BaseModel):
    """A succeeded job's checkpoint on its way to a registry or a hub."""

    target: HandOffTarget
    state: HandOffState
    attempts: int
    created_at: datetime
    finished_at: datetime | None
    next_try_at: datetime | None
    reference: str | None = Field(description="name and version, or repository and commit")
    url: str | None
    error: str | None = Field(description="of the last try, if it failed")

    @classmethod
    def of(cls, found: HandOff) -> HandOffOut:
        return cls(**{name: getattr(found, name) for name in cls.model_fields})


class HandOffList(BaseModel):
    """All of a job's; empty where the deployment hands nothing off."""

    data: list[HandOffOut]
