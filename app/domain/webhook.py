"""Who is told about jobs over HTTP, what is said, and how often it is tried."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from app.domain.events import EventType
from app.domain.job import Job
from app.domain.lifecycle import TERMINAL

TEST_EVENT = "webhook.test"
GONE = 410

TRIES = 16
FAILING_PATIENCE = timedelta(days=5)
"""A receiver that has answered nothing well for so long is given up."""
SECRET_OVERLAP = timedelta(hours=24)
"""How long the secret before the current one signs too."""

_FIRST_PAUSE_SECONDS = 20.0
_LONGEST_PAUSE_SECONDS = 8 * 3600.0
# Steps of one attempt: who follows these listens to the job's event stream.
_TOO_MANY = frozenset({EventType.PROGRESS})
_JOB = TypeAdapter(Job)
# What `GET /v1/jobs/{id}` does not show either.
_INTERNAL = {"project_id", "fencing_token", "lease_owner", "traceparent"}


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DisabledReason(StrEnum):
    """Why we stopped sending; a webhook its owner has disabled has no reason."""

    GONE = "gone"
    FAILING = "failing"


@dataclass(frozen=True, kw_only=True)
class WebhookRequest:
    """What somebody asks for."""

    url: str
    events: tuple[str, ...]
    description: str = ""
    enabled: bool = True


@dataclass(frozen=True, kw_only=True)
class Secret:
    """What a secret is derived from; the secret itself is in no row."""

    salt: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """A receiver of events. `previous_salt` is set while the last secret signs too."""

    id: str
    project_id: str
    url: str
    events: tuple[str, ...]
    description: str
    enabled: bool
    disabled_reason: DisabledReason | None
    created_at: datetime
    failing_since: datetime | None
    secret: Secret
    previous_salt: str | None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event for one webhook; its id is the `webhook-id` of every try."""

    id: str
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


@dataclass(frozen=True, kw_only=True)
class DueDelivery:
    """One try of a delivery; `attempt` fences it against later ones."""

    id: str
    attempt: int
    tries_left: int
    body: str
    webhook: Webhook


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a try: the receiver's status, or why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after: float = 0.0

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def is_announced(kind: EventType) -> bool:
    """Whether webhooks hear of such events."""
    return kind not in _TOO_MANY


def event_name(kind: EventType) -> str:
    return f"job.{kind}"


EVENT_NAMES = tuple(event_name(kind) for kind in EventType if is_announced(kind))
ENDINGS = tuple(event_name(EventType(state)) for state in sorted(TERMINAL))


def job_payload(kind: EventType, at: datetime, job: Job) -> str:
    """The body, byte for byte, that is signed and sent: the job as it was at the event."""
    data = _JOB.dump_python(job, mode="json", exclude=_INTERNAL)
    return payload(event_name(kind), at, {"object": "job", **data})


def payload(name: str, at: datetime, data: dict[str, Any]) -> str:
    content = {"type": name, "timestamp": at.isoformat(), "data": data}
    return json.dumps(content, separators=(",", ":"))


def pause(due: DueDelivery, answer: Answer, chance: float) -> timedelta:
    """Before the next try: exponential with full jitter, or longer if the receiver says so.

    `chance` is uniform in [0, 1]. All tries of a delivery take 22 h on average, 43 h at most.
    """
    done = TRIES - due.tries_left
    longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** (done - 1), _LONGEST_PAUSE_SECONDS)
    asked = min(answer.retry_after, _LONGEST_PAUSE_SECONDS)
    return timedelta(seconds=max(chance * longest, asked))
