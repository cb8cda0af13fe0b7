"""The worker's thread of webhook deliveries."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest
from sqlalchemy import text

from app.adapters.webhook_sender import WebhookSender
from app.domain.principal import OPERATOR
from app.domain.webhook import ENDINGS, Answer, WebhookRequest
from app.services import webhooks
from app.services.resources import Resources
from workers.periodic_tasks import PollingThread, send_due_deliveries

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


class FailingOnce(WebhookSender):
    """Raises an unexpected error at the first delivery and sets `sent` at the second."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources.webhook_sender.guard, timeout=1.0)
        self._resources = resources
        self.attempts = 0
        self.sent = threading.Event()

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.attempts += 1
        if self.attempts == 1:
            with self._resources.database.transaction() as transaction:
                transaction.execute(text("UPDATE webhook_deliveries SET next_try_at = now()"))
            raise ZeroDivisionError
        self.sent.set()
        return Answer(status=200)


def test_the_thread_survives_a_bug_and_repeats_the_delivery(resources: Resources) -> None:
    request = WebhookRequest(url="https://93.184.216.34/", events=ENDINGS)
    webhook = webhooks.create_webhook(resources, OPERATOR, request)
    webhooks.send_test(resources, OPERATOR, webhook.id)
    sender = FailingOnce(resources)
    loop = PollingThread(
        replace(resources, webhook_sender=sender), "deliveries", send_due_deliveries
    )
    loop.start()
    try:
        assert sender.sent.wait(30)
    finally:
        loop.stop()
    page = webhooks.list_deliveries(resources, OPERATOR, webhook.id, limit=9, before=None)
    (delivery,) = page.data
    assert (delivery.state, delivery.attempts, sender.attempts) == ("delivered", 2, 2)
