"""Request bodies of `/v1/webhooks`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from app.api.schemas import storable
from app.domain.webhook import ENDINGS, EVENT_NAMES, WebhookRequest

_MAX_URL = 2048


def _changes(schema: dict[str, Any]) -> None:
    """Remove the defaults from the schema: an omitted field keeps its value."""
    for field in schema["properties"].values():
        field.pop("default", None)
    schema["examples"] = [{"enabled": True}]


def _known_event(name: str) -> str:
    if name not in EVENT_NAMES:
        raise ValueError(f"one of {', '.join(EVENT_NAMES)}")
    return name


EventName = Annotated[
    str, AfterValidator(_known_event), Field(json_schema_extra={"enum": list(EVENT_NAMES)})
]
EventNames = Annotated[tuple[EventName, ...], Field(min_length=1, max_length=len(EVENT_NAMES))]
Url = Annotated[
    str, BeforeValidator(storable), StringConstraints(min_length=1, max_length=_MAX_URL)
]
Description = Annotated[str, BeforeValidator(storable), StringConstraints(max_length=256)]


class WebhookCreate(BaseModel):
    """A webhook to be created: its URL and the events to send."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "url": "https://ci.example.com/hooks/intraslice",
                    "events": ["job.succeeded", "job.failed"],
                }
            ]
        },
    )

    url: Url
    events: EventNames = ENDINGS
    description: Description = ""
    enabled: bool = True

    def to_domain(self) -> WebhookRequest:
        return WebhookRequest(
            url=self.url,
            events=tuple(dict.fromkeys(self.events)),
            description=self.description,
            enabled=self.enabled,
        )


class WebhookChange(BaseModel):
    """Changes to a webhook; omitted fields keep their values."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_changes)

    url: Url = ""
    events: EventNames = ENDINGS
    description: Description = ""
    enabled: bool = True

    def given(self) -> dict[str, Any]:
        return self.model_dump(include=self.model_fields_set)
