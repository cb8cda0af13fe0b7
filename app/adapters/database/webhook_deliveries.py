"""Rows of `webhook_deliveries`, pending and settled.

A row is claimed for one attempt by moving its `next_try_at` past the attempt's time limit. If the
worker dies between sending and recording, another attempt with the same id follows. An attempt
records its outcome under its number, so that a late one changes nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select, update

from app.adapters.database import jobs, webhooks
from app.adapters.database.engine import Transaction
from app.adapters.database.tables import webhook_deliveries as deliveries
from app.adapters.database.tables import webhooks as receivers
from app.domain.events import EventType
from app.domain.identifiers import DELIVERY, new_id
from app.domain.webhook import (
    TRIES,
    Answer,
    Delivery,
    DeliveryState,
    DueDelivery,
    event_name,
    is_announced,
    job_payload,
)

_HIDDEN = {"body", "tries_left"}
_COLUMNS = tuple(column for column in deliveries.c if column.name not in _HIDDEN)
_PENDING = deliveries.c.state == DeliveryState.PENDING


def announce(
    transaction: Transaction, project_id: str, job_id: str, kind: EventType, at: datetime
) -> None:
    """Insert a delivery for every webhook that is subscribed to the event."""
    if not is_announced(kind):
        return
    listening = transaction.scalars(
        select(receivers.c.id).where(
            receivers.c.project_id == project_id,
            receivers.c.enabled,
            receivers.c.events.contains([event_name(kind)]),
        )
    ).all()
    job = jobs.find(transaction, job_id) if listening else None
    if job is None:
        return
    body = job_payload(kind, at, job)
    for webhook_id in listening:
        add(transaction, webhook_id, event_name(kind), body, job_id=job_id)


def add(
    transaction: Transaction, webhook_id: str, name: str, body: str, *, job_id: str | None
) -> Delivery:
    row = transaction.execute(
        insert(deliveries)
        .values(
            id=new_id(DELIVERY),
            webhook_id=webhook_id,
            type=name,
            job_id=job_id,
            body=body,
            state=DeliveryState.PENDING,
            tries_left=TRIES,
            next_try_at=func.now(),
        )
        .returning(*_COLUMNS)
    ).one()
    return _delivery(row)


def newest(
    transaction: Transaction, webhook_id: str, *, limit: int, before: str | None
) -> list[Delivery]:
    query = (
        select(*_COLUMNS)
        .where(deliveries.c.webhook_id == webhook_id)
        .order_by(deliveries.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(deliveries.c.id < before)
    return [_delivery(row) for row in transaction.execute(query)]


def find(transaction: Transaction, webhook_id: str, delivery_id: str) -> Delivery | None:
    query = select(*_COLUMNS).where(_of_webhook(webhook_id, delivery_id))
    row = transaction.execute(query).one_or_none()
    return _delivery(row) if row is not None else None


def send_again(transaction: Transaction, webhook_id: str, delivery_id: str) -> Delivery | None:
    """Restart a settled delivery under the same id; None if it is still pending."""
    row = transaction.execute(
        update(deliveries)
        .where(_of_webhook(webhook_id, delivery_id), ~_PENDING)
        .values(state=DeliveryState.PENDING, tries_left=TRIES, next_try_at=func.now())
        .returning(*_COLUMNS)
    ).one_or_none()
    return _delivery(row) if row is not None else None


def claim(transaction: Transaction, *, limit: int, lease: timedelta) -> list[DueDelivery]:
    """Claim due deliveries for one attempt each, at most one of each webhook.

    So a receiver that answers slowly takes one place from the others and not all.
    """
    due = deliveries.c.next_try_at <= func.now()
    # Ids sort by time: each webhook gets its oldest delivery first.
    first = select(func.min(deliveries.c.id)).where(due).group_by(deliveries.c.webhook_id)
    taken = (
        select(deliveries.c.id)
        .where(deliveries.c.id.in_(first.scalar_subquery()), due)
        .order_by(deliveries.c.next_try_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = transaction.execute(
        update(deliveries)
        .where(deliveries.c.id.in_(taken.scalar_subquery()))
        .values(
            attempts=deliveries.c.attempts + 1,
            tries_left=func.greatest(deliveries.c.tries_left - 1, 0),
            next_try_at=func.now() + lease,
            last_attempt_at=func.now(),
        )
        .returning(deliveries)
    ).all()
    receiving = webhooks.find_all(transaction, {row.webhook_id for row in rows})
    return [
        DueDelivery(
            id=row.id,
            attempt=row.attempts,
            tries_left=row.tries_left,
            body=row.body,
            webhook=receiving[row.webhook_id],
        )
        for row in rows
    ]


def postpone(transaction: Transaction, due: DueDelivery, answer: Answer, pause: timedelta) -> None:
    _record(transaction, due, answer, DeliveryState.PENDING, next_try_at=func.now() + pause)


def finish(
    transaction: Transaction, due: DueDelivery, answer: Answer, state: DeliveryState
) -> None:
    _record(transaction, due, answer, state, next_try_at=None)


def give_up_all(transaction: Transaction, webhook_id: str, reason: str) -> None:
    """Fail all pending deliveries of a webhook."""
    transaction.execute(
        update(deliveries)
        .where(deliveries.c.webhook_id == webhook_id, _PENDING)
        .values(state=DeliveryState.FAILED, next_try_at=None, last_error=reason)
    )


def prune(transaction: Transaction, age: timedelta, limit: int) -> int:
    """Delete old settled deliveries; return how many."""
    old = (
        select(deliveries.c.id)
        .where(deliveries.c.created_at < func.now() - age, ~_PENDING)
        .order_by(deliveries.c.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    removed = transaction.execute(
        delete(deliveries).where(deliveries.c.id.in_(old.scalar_subquery()))
    )
    return removed.rowcount


def _record(
    transaction: Transaction, due: DueDelivery, answer: Answer, state: DeliveryState, **values: Any
) -> None:
    this_try = and_(deliveries.c.id == due.id, deliveries.c.attempts == due.attempt, _PENDING)
    transaction.execute(
        update(deliveries)
        .where(this_try)
        .values(state=state, last_status=answer.status, last_error=answer.error, **values)
    )


def _of_webhook(webhook_id: str, delivery_id: str) -> ColumnElement[bool]:
    return and_(deliveries.c.id == delivery_id, deliveries.c.webhook_id == webhook_id)


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery.model_validate(row, from_attributes=True)
