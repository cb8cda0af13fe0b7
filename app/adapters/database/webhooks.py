"""Rows of `webhooks`."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, delete, func, insert, select, update

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import webhooks
from app.domain.webhook import DisabledReason, Secret, WebhookRecord, WebhookRequest

_COLUMNS = (
    *(column for column in webhooks.c if column.name not in ("previous_salt", "previous_until")),
    # An expired previous secret does not sign any more.
    case((webhooks.c.previous_until > func.now(), webhooks.c.previous_salt)).label("previous_salt"),
)


def insert_webhook(
    transaction: Transaction,
    webhook_id: str,
    project_id: str,
    request: WebhookRequest,
    secret: Secret,
) -> WebhookRecord:
    row = transaction.execute(
        insert(webhooks)
        .values(id=webhook_id, project_id=project_id, **_requested(request), **_secret(secret))
        .returning(*_COLUMNS)
    ).one()
    return _webhook(row)


def count(transaction: Transaction, project_id: str) -> int:
    """Count a project's webhooks; other creations wait until this transaction ends."""
    transaction.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"webhooks {project_id}"))))
    query = select(func.count()).where(webhooks.c.project_id == project_id)
    return transaction.scalar(query) or 0


def find(transaction: Transaction, project_id: str, webhook_id: str) -> WebhookRecord | None:
    query = select(*_COLUMNS).where(_of_project(project_id, webhook_id))
    row = transaction.execute(query).one_or_none()
    return _webhook(row) if row is not None else None


def find_all(transaction: Transaction, webhook_ids: Collection[str]) -> dict[str, WebhookRecord]:
    """Return webhooks of any project by their ids, for the sender."""
    query = select(*_COLUMNS).where(webhooks.c.id.in_(webhook_ids))
    return {row.id: _webhook(row) for row in transaction.execute(query)}


def enabled_secrets(transaction: Transaction) -> list[tuple[str, Secret]]:
    """Return the id and the stored secret of every project's enabled webhooks."""
    query = select(webhooks.c.id, webhooks.c.salt, webhooks.c.fingerprint).where(webhooks.c.enabled)
    return [
        (row.id, Secret(salt=row.salt, fingerprint=row.fingerprint))
        for row in transaction.execute(query)
    ]


def lock(transaction: Transaction, webhook_id: str) -> WebhookRecord | None:
    """Return the webhook, locked: no other transaction settles its deliveries meanwhile.

    Events can still be announced to it: that takes a weaker lock.
    """
    query = select(*_COLUMNS).where(webhooks.c.id == webhook_id).with_for_update(key_share=True)
    row = transaction.execute(query).one_or_none()
    return _webhook(row) if row is not None else None


def newest(
    transaction: Transaction, project_id: str, *, limit: int, before: str | None
) -> list[WebhookRecord]:
    query = (
        select(*_COLUMNS)
        .where(webhooks.c.project_id == project_id)
        .order_by(webhooks.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(webhooks.c.id < before)
    return [_webhook(row) for row in transaction.execute(query)]


def change(
    transaction: Transaction, webhook_id: str, request: WebhookRequest, *, forgive: bool
) -> WebhookRecord | None:
    """Change a webhook; `forgive` clears the reason it was disabled and its time of failure."""
    cleared = {"disabled_reason": None, "failing_since": None} if forgive else {}
    return _change(transaction, webhooks.c.id == webhook_id, **_requested(request), **cleared)


def rotate(
    transaction: Transaction,
    project_id: str,
    webhook_id: str,
    secret: Secret,
    overlap: timedelta,
) -> WebhookRecord | None:
    return _change(
        transaction,
        _of_project(project_id, webhook_id),
        previous_salt=webhooks.c.salt,
        previous_until=func.now() + overlap,
        **_secret(secret),
    )


def remove(transaction: Transaction, project_id: str, webhook_id: str) -> bool:
    """Delete a webhook and its deliveries."""
    removed = transaction.execute(delete(webhooks).where(_of_project(project_id, webhook_id)))
    return removed.rowcount == 1


def mark_working(transaction: Transaction, webhook_id: str) -> None:
    failing = and_(webhooks.c.id == webhook_id, webhooks.c.failing_since.is_not(None))
    transaction.execute(update(webhooks).where(failing).values(failing_since=None))


def mark_failing(transaction: Transaction, webhook_id: str, patience: timedelta) -> bool:
    """Record the first failure; return whether it was longer ago than `patience`."""
    too_long = transaction.scalar(
        update(webhooks)
        .where(webhooks.c.id == webhook_id)
        .values(failing_since=func.coalesce(webhooks.c.failing_since, func.now()))
        .returning(webhooks.c.failing_since < func.now() - patience)
    )
    return bool(too_long)


def disable(transaction: Transaction, webhook_id: str, reason: DisabledReason) -> None:
    transaction.execute(
        update(webhooks)
        .where(webhooks.c.id == webhook_id, webhooks.c.enabled)
        .values(enabled=False, disabled_reason=reason)
    )


def _change(
    transaction: Transaction, guard: ColumnElement[bool], **values: Any
) -> WebhookRecord | None:
    row = transaction.execute(
        update(webhooks).where(guard).values(**values).returning(*_COLUMNS)
    ).one_or_none()
    return _webhook(row) if row is not None else None


def _of_project(project_id: str, webhook_id: str) -> ColumnElement[bool]:
    return and_(webhooks.c.id == webhook_id, webhooks.c.project_id == project_id)


def _requested(request: WebhookRequest) -> dict[str, Any]:
    return {
        "url": request.url,
        "events": list(request.events),
        "description": request.description,
        "enabled": request.enabled,
    }


def _secret(secret: Secret) -> dict[str, Any]:
    return {"salt": secret.salt, "fingerprint": secret.fingerprint}


def _webhook(row: Row[Any]) -> WebhookRecord:
    secret = Secret(salt=row.salt, fingerprint=row.fingerprint)
    return WebhookRecord.model_validate({**row._mapping, "secret": secret})
