"""The wire format of webhooks and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from app.api.pagination import encode_cursor
from app.api.schemas import storable
from app.domain.webhook import (
    ENDINGS,
    EVENT_NAMES,
    Delivery,
    DeliveryState,
    DisabledReason,
    Webhook,
    WebhookRequest,
)
from app.services.webhooks import NewSecret

_MAX_URL = 2048
_EXAMPLE: dict[str, Any] = {
    "id": "whk_01KAS3ZK5E8H2N9PWT4Y7M1QRV",
    "object": "webhook",
    "url": "https://ci.example.com/hooks/intraslice",
    "events": ["job.succeeded", "job.failed"],
    "description": "CI",
    "enabled": True,
    "disabled_reason": None,
    "failing_since": None,
    "created_at": "2026-03-01T12:00:00Z",
}
_DELIVERY: dict[str, Any] = {
    "id": "msg_01KAS3ZK5E8H2N9PWT4Y7M1QRV",
    "object": "webhook_delivery",
    "webhook_id": _EXAMPLE["id"],
    "type": "job.succeeded",
    "job_id": "job_01KAS3ZK5E8H2N9PWT4Y7M1QRV",
    "state": "pending",
    "attempts": 1,
    "created_at": "2026-03-01T12:00:00Z",
    "last_attempt_at": "2026-03-01T12:00:01Z",
    "last_status": 503,
    "last_error": None,
    "next_try_at": "2026-03-01T12:00:13Z",
}


def _changes(schema: dict[str, Any]) -> None:
    """What is left out stays as it was: that is no default."""
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
    """Where to post, and which events."""

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
    """What is given replaces what was; the rest stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_changes)

    url: Url = ""
    events: EventNames = ENDINGS
    description: Description = ""
    enabled: bool = True

    def given(self) -> dict[str, Any]:
        return self.model_dump(include=self.model_fields_set)


class WebhookOut(BaseModel):
    """A webhook, without its secret."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_EXAMPLE]})

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    events: tuple[str, ...]
    description: str
    enabled: bool
    disabled_reason: DisabledReason | None
    failing_since: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        return cls.model_validate(webhook)


class WebhookSecretOut(WebhookOut):
    """A webhook with its secret: shown this once, and kept nowhere."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{**_EXAMPLE, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]
        }
    )

    secret: str

    @classmethod
    def of_new(cls, made: NewSecret) -> Self:
        shown = WebhookOut.of(made.webhook)
        return cls(**shown.model_dump(), secret=made.secret)


class WebhookList(BaseModel):
    """One page of webhooks, newest first."""

    data: list[WebhookOut]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, webhooks: list[Webhook], limit: int) -> WebhookList:
        """From up to `limit` and one more."""
        shown, has_more = webhooks[:limit], len(webhooks) > limit
        return cls(
            data=[WebhookOut.of(one) for one in shown],
            has_more=has_more,
            next_cursor=encode_cursor(shown[-1].id) if has_more else None,
        )


class DeliveryOut(BaseModel):
    """One event for one webhook; `id` is the `webhook-id` that the receiver sees."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_DELIVERY]})

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    webhook_id: str
    type: str
    job_id: str | None
    state: DeliveryState
    attempts: int
    created_at: datetime
    last_attempt_at: datetime | None
    last_status: int | None
    last_error: str | None
    next_try_at: datetime | None

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        return cls.model_validate(delivery)


class DeliveryList(BaseModel):
    """One page of deliveries, newest first."""

    data: list[DeliveryOut]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, deliveries: list[Delivery], limit: int) -> DeliveryList:
        """From up to `limit` and one more."""
        shown, has_more = deliveries[:limit], len(deliveries) > limit
        return cls(
            data=[DeliveryOut.of(one) for one in shown],
            has_more=has_more,
            next_cursor=encode_cursor(shown[-1].id) if has_more else None,
        )
