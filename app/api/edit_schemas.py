"""Request body of `PATCH /v1/jobs/{job_id}`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from app.api.schemas import LabelKey, LabelValue, storable
from app.domain.job import MOST_LABELS, NAME_LABEL

JobName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=256, pattern=r"^[^\r\n]*$"),
]


class JobEdit(BaseModel):
    """Changes of a job's name and labels; what is not named stays as it is (RFC 7396)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "nightly-30", "labels": {"team": "search", "draft": None}}]
        },
    )

    name: Annotated[
        JobName | None,
        BeforeValidator(storable),
        Field(description="New name, which is the label `name`; null removes it."),
    ] = None
    labels: Annotated[
        dict[LabelKey, LabelValue | None],
        BeforeValidator(storable),
        Field(
            max_length=2 * MOST_LABELS,
            description="Labels to set; null removes one. Others stay.",
        ),
    ] = {}

    @model_validator(mode="after")
    def _require_changes(self) -> Self:
        if "name" not in self.model_fields_set and not self.labels:
            raise ValueError("nothing to change: give a name or labels")
        if "name" in self.model_fields_set and NAME_LABEL in self.labels:
            raise ValueError(f"give the name once: as name, or as the label {NAME_LABEL!r}")
        return self

    def changes(self) -> dict[str, str | None]:
        """Return the labels to set, and as None those to remove; the name is one of them."""
        named = {NAME_LABEL: self.name} if "name" in self.model_fields_set else {}
        return named | self.labels
