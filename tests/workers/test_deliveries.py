"""The worker's thread that sends webhooks."""

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


class Stumbling(WebhookSender):
    """Fails with a bug of ours the first time, and tells when it has sent."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources.webhook_sender.guard, timeout=1.0)
        self._resources = resources
        self.tries = 0
        self.sent = threading.Event()

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.tries += 1
        if self.tries == 1:
            with self._resources.database.transaction() as transaction:
                transaction.execute(text("UPDATE webhook_deliveries SET next_try_at = now()"))
            raise ZeroDivisionError
        self.sent.set()
        return Answer(status=200)


def test_thread_outlives_a_bug_and_sends_what_it_had_not_recorded(resources: Resources) -> None:
    request = WebhookRequest(url="https://93.184.216.34/", events=ENDINGS)
    webhook = webhooks.create_webhook(resources, OPERATOR, request).webhook
    webhooks.send_test(resources, OPERATOR, webhook.id)
    sender = Stumbling(resources)
    loop = PollingThread(
        replace(resources, webhook_sender=sender), "deliveries", send_due_deliveries
    )
    loop.start()
    try:
        assert sender.sent.wait(30)
    finally:
        loop.stop()
    (delivery,) = webhooks.list_deliveries(resources, OPERATOR, webhook.id, limit=9, before=None)
    assert (delivery.state, delivery.attempts, sender.tries) == ("delivered", 2, 2)
