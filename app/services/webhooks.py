"""Use cases of webhooks and their deliveries."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from app.adapters.database import webhook_deliveries as deliveries
from app.adapters.database import webhooks
from app.adapters.database.engine import Transaction
from app.domain.errors import (
    DeliveryNotFoundError,
    DeliveryPendingError,
    InvalidRequestError,
    WebhookDisabledError,
    WebhookNotFoundError,
)
from app.domain.identifiers import DELIVERY, WEBHOOK, is_id, new_id
from app.domain.principal import Principal
from app.domain.webhook import (
    SECRET_OVERLAP,
    TEST_EVENT,
    Delivery,
    DeliveryList,
    WebhookList,
    WebhookRecord,
    WebhookRequest,
    WebhookWithSecret,
    payload,
)
from app.services.resources import Resources

MAX_WEBHOOKS = 20
"""Maximum for one project; every event is written once for each."""
_OWNER_DISABLED = "the webhook was disabled"


def create_webhook(
    resources: Resources, principal: Principal, request: WebhookRequest
) -> WebhookWithSecret:
    """Create a webhook for the events of the principal's project.

    Raises:
        DestinationRejectedError: if the URL leads where webhooks may not go.
        InvalidRequestError: if the project has too many.
    """
    _check_url(resources, request.url)
    webhook_id = new_id(WEBHOOK)
    secret, stored = resources.webhook_secrets.create(webhook_id)
    with resources.database.transaction() as transaction:
        if webhooks.count(transaction, principal.project_id) >= MAX_WEBHOOKS:
            raise InvalidRequestError(f"A project has at most {MAX_WEBHOOKS} webhooks")
        webhook = webhooks.insert_webhook(
            transaction, webhook_id, principal.project_id, request, stored
        )
    return _with_secret(webhook, secret)


def get_webhook(resources: Resources, principal: Principal, webhook_id: str) -> WebhookRecord:
    with resources.database.transaction() as transaction:
        return _existing(transaction, principal, webhook_id)


def list_webhooks(
    resources: Resources, principal: Principal, *, limit: int, before: str | None
) -> WebhookList:
    with resources.database.transaction() as transaction:
        page = webhooks.newest(transaction, principal.project_id, limit=limit + 1, before=before)
    return WebhookList.of(page, limit)


def change_webhook(
    resources: Resources, principal: Principal, webhook_id: str, changes: dict[str, Any]
) -> WebhookRecord:
    """Replace the given fields; disabling a webhook fails its pending deliveries.

    Raises:
        DestinationRejectedError: if the new URL leads where webhooks may not go.
    """
    if "url" in changes:
        _check_url(resources, changes["url"])
    with resources.database.transaction() as transaction:
        _existing(transaction, principal, webhook_id)
        now = _visible(webhooks.lock(transaction, webhook_id))
        request = WebhookRequest(
            url=now.url, events=now.events, description=now.description, enabled=now.enabled
        )
        changed = webhooks.change(
            transaction, webhook_id, replace(request, **changes), forgive="enabled" in changes
        )
        if changed is not None and not changed.enabled:
            deliveries.give_up_all(transaction, webhook_id, _OWNER_DISABLED)
    return _visible(changed)


def delete_webhook(resources: Resources, principal: Principal, webhook_id: str) -> None:
    with resources.database.transaction() as transaction:
        _existing(transaction, principal, webhook_id)
        if not webhooks.remove(transaction, principal.project_id, webhook_id):
            raise WebhookNotFoundError


def rotate_secret(resources: Resources, principal: Principal, webhook_id: str) -> WebhookWithSecret:
    """Return a new secret; the previous one also signs for a day, so that receivers can switch."""
    secret, stored = resources.webhook_secrets.create(webhook_id)
    with resources.database.transaction() as transaction:
        _existing(transaction, principal, webhook_id)
        webhook = webhooks.rotate(
            transaction, principal.project_id, webhook_id, stored, SECRET_OVERLAP
        )
    return _with_secret(_visible(webhook), secret)


def send_test(resources: Resources, principal: Principal, webhook_id: str) -> Delivery:
    """Queue a test event, delivered like any other."""
    with resources.database.transaction() as transaction:
        webhook = _enabled(_existing(transaction, principal, webhook_id))
        body = payload(TEST_EVENT, datetime.now(UTC), {"object": "webhook", "id": webhook.id})
        return deliveries.add(transaction, webhook.id, TEST_EVENT, body, job_id=None)


def list_deliveries(
    resources: Resources,
    principal: Principal,
    webhook_id: str,
    *,
    limit: int,
    before: str | None,
) -> DeliveryList:
    with resources.database.transaction() as transaction:
        _existing(transaction, principal, webhook_id)
        page = deliveries.newest(transaction, webhook_id, limit=limit + 1, before=before)
    return DeliveryList.of(page, limit)


def redeliver(
    resources: Resources, principal: Principal, webhook_id: str, delivery_id: str
) -> Delivery:
    """Queue a settled delivery again, with the same id and body.

    Raises:
        DeliveryPendingError: if it is already pending.
    """
    with resources.database.transaction() as transaction:
        _enabled(_existing(transaction, principal, webhook_id))
        valid = is_id(DELIVERY, delivery_id)
        if not valid or deliveries.find(transaction, webhook_id, delivery_id) is None:
            raise DeliveryNotFoundError
        again = deliveries.send_again(transaction, webhook_id, delivery_id)
    if again is None:
        raise DeliveryPendingError
    return again


def _check_url(resources: Resources, url: str) -> None:
    """Raise if the URL is not allowed, so that its author learns it; each sending checks again."""
    guard = resources.webhook_sender.guard
    guard.addresses(guard.parse(url))


def _existing(transaction: Transaction, principal: Principal, webhook_id: str) -> WebhookRecord:
    valid = is_id(WEBHOOK, webhook_id)
    return _visible(webhooks.find(transaction, principal.project_id, webhook_id) if valid else None)


def _visible(webhook: WebhookRecord | None) -> WebhookRecord:
    if webhook is None:
        raise WebhookNotFoundError
    return webhook


def _enabled(webhook: WebhookRecord) -> WebhookRecord:
    if not webhook.enabled:
        raise WebhookDisabledError
    return webhook


def _with_secret(webhook: WebhookRecord, secret: str) -> WebhookWithSecret:
    return WebhookWithSecret.model_validate({**webhook.model_dump(), "secret": secret})
