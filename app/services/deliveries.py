"""What a worker does with deliveries: take some, send them, write down what came of it.

No transaction is open while a receiver is waited for.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from app.adapters.database import webhook_deliveries as deliveries
from app.adapters.database import webhooks
from app.adapters.database.engine import Transaction
from app.adapters.webhook_secrets import signed_headers
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
    """Deliveries for this worker to try, while no other does."""
    lease = timedelta(seconds=resources.settings.webhook_timeout_seconds) + _LEASE_MARGIN
    with resources.database.transaction() as transaction:
        return deliveries.claim(transaction, limit=limit, lease=lease)


def send(resources: Resources, due: DueDelivery) -> Answer:
    """One try. The receiver knows a repetition by `webhook-id`."""
    webhook, keys = due.webhook, resources.webhook_secrets
    if not webhook.enabled:
        return Answer(error="the webhook was disabled")
    if not keys.recognises(webhook.id, webhook.secret):
        return Answer(error="the service's signing key has changed: rotate the webhook's secret")
    salts = (webhook.secret.salt, webhook.previous_salt)
    signing = [keys.derive(webhook.id, salt) for salt in salts if salt is not None]
    headers = signed_headers(due.id, datetime.now(UTC), due.body, signing)
    return resources.webhook_sender.send(webhook.url, headers, due.body.encode())


def record(resources: Resources, due: DueDelivery, answer: Answer) -> None:
    """Success, another try later, or the end; a receiver that wants no more gets no more."""
    with resources.database.transaction() as transaction:
        # First, so that two records of one webhook come one after the other.
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
    """Forget deliveries that were settled long ago."""
    age = timedelta(days=resources.settings.delivery_retention_days)
    with resources.database.transaction() as transaction:
        return deliveries.prune(transaction, age, _PRUNED_AT_ONCE)


def _record_failure(
    transaction: Transaction, webhook: WebhookRecord, due: DueDelivery, answer: Answer
) -> None:
    again = webhook.enabled and answer.status != GONE and due.tries_left > 0
    if again:
        # Jitter, no secret: receivers that were down together are not called together.
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
