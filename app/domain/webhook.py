"""Webhooks, their payloads, and the schedule of delivery attempts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.domain.events import EventType
from app.domain.job import Job
from app.domain.lifecycle import TERMINAL
from app.domain.resource import Page, Resource

TEST_EVENT = "webhook.test"
GONE = 410

TRIES = 16
FAILING_PATIENCE = timedelta(days=5)
"""A webhook is disabled after failing for this long."""
SECRET_OVERLAP = timedelta(hours=24)
"""Time for which the secret before the current one signs too."""

_FIRST_PAUSE_SECONDS = 20.0
_LONGEST_PAUSE_SECONDS = 8 * 3600.0
# Too frequent for webhooks: receivers that want progress follow the job's event stream.
_UNANNOUNCED = frozenset({EventType.PROGRESS})
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


class DeliveryState(StrEnum):
    """State of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DisabledReason(StrEnum):
    """Reason why the service disabled a webhook; null if its owner did."""

    GONE = "gone"
    FAILING = "failing"


@dataclass(frozen=True, kw_only=True)
class WebhookRequest:
    """A webhook to be created, or the new version of one."""

    url: str
    events: tuple[str, ...]
    description: str = ""
    enabled: bool = True


@dataclass(frozen=True, kw_only=True)
class Secret:
    """Salt from which the secret is derived; the secret itself is not stored."""

    salt: str
    fingerprint: str


class Webhook(Resource):
    """A webhook, without its secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    object: Literal["webhook"] = "webhook"
    url: str
    events: tuple[str, ...]
    description: str
    enabled: bool
    disabled_reason: DisabledReason | None
    failing_since: datetime | None
    created_at: datetime


class WebhookRecord(Webhook):
    """A webhook with the fields that only the service sees; they are never serialised."""

    project_id: str = Field(exclude=True)
    secret: Secret = Field(exclude=True)
    previous_salt: str | None = Field(exclude=True)
    """Salt of the secret before the current one, while that still signs too."""


class WebhookWithSecret(Webhook):
    """A webhook with its secret, which is shown once and not stored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{**_EXAMPLE, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]
        }
    )

    secret: str


class WebhookList(Page[Webhook]):
    """One page of webhooks, newest first."""


class Delivery(Resource):
    """An event for a webhook; `id` is the `webhook-id` that the receiver sees."""

    model_config = ConfigDict(json_schema_extra={"examples": [_DELIVERY]})

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


class DeliveryList(Page[Delivery]):
    """One page of deliveries, newest first."""


@dataclass(frozen=True, kw_only=True)
class DueDelivery:
    """One attempt to deliver; a later `attempt` makes its outcome obsolete."""

    id: str
    attempt: int
    tries_left: int
    body: str
    webhook: WebhookRecord


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Outcome of an attempt: the receiver's status, or the reason why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after: float = 0.0

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def is_announced(kind: EventType) -> bool:
    """Return whether webhooks are sent events of this type."""
    return kind not in _UNANNOUNCED


def event_name(kind: EventType) -> str:
    return f"job.{kind}"


EVENT_NAMES = tuple(event_name(kind) for kind in EventType if is_announced(kind))
ENDINGS = tuple(event_name(EventType(state)) for state in sorted(TERMINAL))


def job_payload(kind: EventType, at: datetime, job: Job) -> str:
    """Return the body, byte for byte, that is signed and sent: the job as it was at the event."""
    return payload(event_name(kind), at, job.model_dump(mode="json", exclude={"urls"}))


def payload(name: str, at: datetime, data: dict[str, Any]) -> str:
    content = {"type": name, "timestamp": at.isoformat(), "data": data}
    return json.dumps(content, separators=(",", ":"))


def pause(due: DueDelivery, answer: Answer, chance: float) -> timedelta:
    """Return the pause before the next attempt: exponential with full jitter, or `Retry-After`.

    `chance` is uniform in [0, 1]. All attempts together take 22 h on average, 43 h at most.
    """
    done = TRIES - due.tries_left
    longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** (done - 1), _LONGEST_PAUSE_SECONDS)
    requested = min(answer.retry_after, _LONGEST_PAUSE_SECONDS)
    return timedelta(seconds=max(chance * longest, requested))
