"""Request body of `POST /v1/keys`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from app.domain.principal import PROJECT_PATTERN, Scope
from app.services.keys import KeyRequest


class KeyCreate(BaseModel):
    """A key to be created; `project` defaults to the caller's."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "nightly pipeline", "scope": "write"}]},
    )

    name: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]
    scope: Scope = Field(description="read, write or admin; each includes the one before.")
    project: Annotated[str, StringConstraints(pattern=PROJECT_PATTERN)] | None = None
    expires_at: AwareDatetime | None = None

    def to_domain(self) -> KeyRequest:
        return KeyRequest(
            name=self.name,
            scope=self.scope,
            project_id=self.project,
            expires_at=self.expires_at,
        )
