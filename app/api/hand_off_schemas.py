"""Request body of `POST /v1/jobs/{job_id}/hand-offs`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.domain.registry_hand_off import MOST_NAME_CHARACTERS, NAME_PATTERN
from app.domain.service import HandOffTarget


class HandOffCreate(BaseModel):
    """A registry hand-off to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"target": "hub", "name": "SmolLM2-135M-30"}]},
    )

    target: HandOffTarget
    name: Annotated[
        Annotated[str, StringConstraints(max_length=MOST_NAME_CHARACTERS, pattern=NAME_PATTERN)]
        | None,
        Field(
            description="Name of the repository, below the service's namespace, or of the "
            "registered model; null selects the one in `places`."
        ),
    ] = None
