"""Delivery of webhooks by workers: claim, send, record the outcome.

No transaction is open while a worker waits for a receiver.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from app.adapters.database import webhook_deliveries as deliveries
from app.adapters.database import webhooks
from app.adapters.database.engine import Transaction
from app.adapters.webhook_signing import signed_headers
from app.domain.webhook import (
    FAILING_PATIENCE,
    GONE,
    Answer,
    DeliveryState,
    DisabledReason,
    DueDelivery,
    WebhookRecord,
    pause,
)
from app.services.resources import Resources
from app.telemetry import get_logger, metrics

_PRUNED_AT_ONCE = 500
_LEASE_MARGIN = timedelta(seconds=60)  # the system's resolver keeps to no deadline of ours
_log = get_logger(__name__)


def claim_due(resources: Resources, limit: int) -> list[DueDelivery]:
    """Claim due deliveries for this worker."""
    lease = timedelta(seconds=resources.settings.webhook_timeout_seconds) + _LEASE_MARGIN
    with resources.database.transaction() as transaction:
        return deliveries.claim(transaction, limit=limit, lease=lease)


def send(resources: Resources, due: DueDelivery) -> Answer:
    """Send a delivery once; the receiver recognises a repetition by `webhook-id`."""
    webhook, keys = due.webhook, resources.webhook_secrets
    if not webhook.enabled:
        return Answer(error="the webhook was disabled")
    signing = keys.signing(webhook.id, webhook.secret, webhook.previous_salt)
    if not signing:
        return Answer(error="the service's signing key has changed: rotate the webhook's secret")
    if keys.needs_previous_key(webhook.id, webhook.secret):
        _log.info(
            "webhook_on_previous_key",
            effect="rotate its secret before the previous signing key is removed",
            webhook_id=webhook.id,
            project_id=webhook.project_id,
        )
    headers = signed_headers(due.id, datetime.now(UTC), due.body, signing)
    return resources.webhook_sender.send(webhook.url, headers, due.body.encode())


def record(resources: Resources, due: DueDelivery, answer: Answer) -> None:
    """Record success, another attempt or final failure; answer 410 disables the webhook."""
    with resources.database.transaction() as transaction:
        # Locked first, so that the outcomes of one webhook are recorded one after the other.
        webhook = webhooks.lock(transaction, due.webhook.id)
        if webhook is None:
            return
        if answer.accepted:
            deliveries.finish(transaction, due, answer, DeliveryState.DELIVERED)
            webhooks.mark_working(transaction, webhook.id)
        else:
            _record_failure(transaction, webhook, due, answer)
    outcome = "accepted" if answer.accepted else "refused" if answer.status else "unanswered"
    metrics.WEBHOOK_TRIES.labels(outcome).inc()


def prune(resources: Resources) -> int:
    """Delete old settled deliveries; return how many."""
    age = timedelta(days=resources.settings.delivery_retention_days)
    with resources.database.transaction() as transaction:
        return deliveries.prune(transaction, age, _PRUNED_AT_ONCE)


def _record_failure(
    transaction: Transaction, webhook: WebhookRecord, due: DueDelivery, answer: Answer
) -> None:
    again = webhook.enabled and answer.status != GONE and due.tries_left > 0
    if again:
        # Jitter needs no secure randomness: it spreads attempts to receivers that failed together.
        wait = pause(due, answer, random.random())
        deliveries.postpone(transaction, due, answer, wait)
    else:
        deliveries.finish(transaction, due, answer, DeliveryState.FAILED)
    reason = _why_disable(transaction, webhook, answer)
    if reason is not None:
        webhooks.disable(transaction, webhook.id, reason)
        deliveries.give_up_all(transaction, webhook.id, f"the webhook was disabled: {reason}")
        _log.warning("webhook_disabled", webhook_id=webhook.id, reason=reason)
    _log.info(
        "webhook_not_delivered",
        webhook_id=webhook.id,
        delivery_id=due.id,
        attempt=due.attempt,
        status=answer.status,
        error=answer.error,
        again=again,
    )


def _why_disable(
    transaction: Transaction, webhook: WebhookRecord, answer: Answer
) -> DisabledReason | None:
    if not webhook.enabled:
        return None
    too_long = webhooks.mark_failing(transaction, webhook.id, FAILING_PATIENCE)
    if answer.status == GONE:
        return DisabledReason.GONE
    return DisabledReason.FAILING if too_long else None
