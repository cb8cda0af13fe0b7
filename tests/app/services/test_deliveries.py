"""Deliveries: written with their event, sent at least once, retried, and disabled."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from app.adapters.database import events
from app.adapters.webhook_signing import WebhookSecrets
from app.domain.errors import WebhookNotFoundError
from app.domain.events import EventType
from app.domain.lifecycle import State
from app.domain.principal import OPERATOR, Principal, Scope
from app.domain.webhook import (
    ENDINGS,
    EVENT_NAMES,
    TRIES,
    Delivery,
    Webhook,
    WebhookRequest,
    WebhookWithSecret,
)
from app.services import deliveries, jobs, webhooks
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import in_state, make_request, queued
from tests.app.receivers import Receiver, receiver
from workers.periodic_tasks import send_due_deliveries

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
OTHER = Principal(project_id="other", scopes=frozenset(Scope))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_loopback": True})


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


def listen(
    resources: Resources, url: str, *events: str, principal: Principal = OPERATOR
) -> WebhookWithSecret:
    request = WebhookRequest(url=url, events=events or ENDINGS)
    return webhooks.create_webhook(resources, principal, request)


def log_of(resources: Resources, webhook_id: str) -> list[Delivery]:
    page = webhooks.list_deliveries(resources, OPERATOR, webhook_id, limit=100, before=None)
    return list(page.data)


def shown(resources: Resources, made: WebhookWithSecret) -> Webhook:
    return webhooks.get_webhook(resources, OPERATOR, made.id)


def sql(resources: Resources, statement: str) -> None:
    with resources.database.transaction() as transaction:
        transaction.execute(text(statement))


def be_due(resources: Resources) -> None:
    """End every pause and every lease."""
    sql(
        resources,
        "UPDATE webhook_deliveries SET next_try_at = now() - interval '1 second'"
        " WHERE state = 'pending'",
    )


def test_the_end_of_a_job_is_delivered_with_a_signature(
    resources: Resources, there: Receiver
) -> None:
    made = listen(resources, there.url)
    job = in_state(resources, State.SUCCEEDED)
    assert send_due_deliveries(resources) == 1
    (request,) = there.received
    payload = request.verified(made.secret)
    assert (payload["type"], payload["data"]["id"]) == ("job.succeeded", job.id)
    assert payload["data"]["state"] == "succeeded"
    (delivery,) = log_of(resources, made.id)
    assert (delivery.id, delivery.state, delivery.attempts) == (request.id, "delivered", 1)
    assert (delivery.last_status, delivery.last_error, delivery.next_try_at) == (204, None, None)
    assert delivery.job_id == job.id
    assert send_due_deliveries(resources) == 0


def test_only_subscribed_events_of_the_own_project_are_sent(
    resources: Resources, there: Receiver
) -> None:
    made = listen(resources, there.url, "job.started", "job.failed")
    foreign = listen(resources, there.url, *EVENT_NAMES, principal=OTHER)
    in_state(resources, State.FAILED)
    types = [delivery.type for delivery in log_of(resources, made.id)]
    assert sorted(types) == ["job.failed", "job.started"]
    theirs = webhooks.list_deliveries(resources, OTHER, foreign.id, limit=10, before=None)
    assert theirs.data == ()
    with pytest.raises(WebhookNotFoundError):
        webhooks.list_deliveries(resources, OTHER, made.id, limit=10, before=None)


def append_without_commit(resources: Resources) -> None:
    with resources.database.transaction() as transaction:
        transaction.execute(
            text(
                "INSERT INTO jobs (id, project_id, state, model, compression, labels, max_attempts)"
                " VALUES ('job_x', 'default', 'queued', :model, '{}', '{}', 3)"
            ),
            {"model": '{"source": "package", "ref": "m"}'},
        )
        events.append(transaction, "job_x", EventType.QUEUED)
        count = transaction.execute(text("SELECT count(*) FROM webhook_deliveries")).scalar_one()
        assert count == 1
        raise RuntimeError("power cut")


def test_a_delivery_is_written_in_the_transaction_of_its_event(
    resources: Resources, there: Receiver
) -> None:
    made = listen(resources, there.url, "job.queued")
    with pytest.raises(RuntimeError, match="power cut"):
        append_without_commit(resources)
    assert log_of(resources, made.id) == []
    queued(resources)
    assert len(log_of(resources, made.id)) == 1


def test_a_failed_delivery_is_retried_with_the_same_id_and_body(
    resources: Resources, there: Receiver
) -> None:
    there.statuses = [500, 302, 200]
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    for status, state in ((500, "pending"), (302, "pending"), (200, "delivered")):
        assert send_due_deliveries(resources) == 1
        (delivery,) = log_of(resources, made.id)
        assert (delivery.last_status, delivery.state) == (status, state)
        assert (shown(resources, made).failing_since is None) == (status == 200)
        be_due(resources)
    assert delivery.attempts == 3
    assert len({request.id for request in there.received}) == 1
    assert len({request.body for request in there.received}) == 1
    for request in there.received:
        request.verified(made.secret)


def test_retry_after_is_respected(resources: Resources) -> None:
    with receiver(statuses=[429], headers={"retry-after": "7200"}) as there:
        made = listen(resources, there.url)
        in_state(resources, State.CANCELLED)
        assert send_due_deliveries(resources) == 1
    (delivery,) = log_of(resources, made.id)
    assert delivery.next_try_at is not None
    assert delivery.last_attempt_at is not None
    waiting = delivery.next_try_at - delivery.last_attempt_at
    assert timedelta(minutes=119) < waiting < timedelta(minutes=122)


def test_attempts_are_limited_and_redelivery_starts_again(
    resources: Resources, there: Receiver
) -> None:
    there.statuses = [*[500] * TRIES, 200]
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    for _ in range(TRIES):
        assert send_due_deliveries(resources) == 1
        be_due(resources)
    assert send_due_deliveries(resources) == 0
    (delivery,) = log_of(resources, made.id)
    assert (delivery.state, delivery.attempts) == ("failed", TRIES)
    webhooks.redeliver(resources, OPERATOR, made.id, delivery.id)
    assert send_due_deliveries(resources) == 1
    (delivery,) = log_of(resources, made.id)
    assert (delivery.state, delivery.attempts) == ("delivered", TRIES + 1)
    assert len({request.id for request in there.received}) == 1


def test_status_410_disables_the_webhook(resources: Resources, there: Receiver) -> None:
    there.statuses = [410]
    made = listen(resources, there.url)
    for _ in range(2):
        in_state(resources, State.CANCELLED)
    assert send_due_deliveries(resources) == 1
    webhook = shown(resources, made)
    assert (webhook.enabled, webhook.disabled_reason) == (False, "gone")
    assert {delivery.state for delivery in log_of(resources, webhook.id)} == {"failed"}
    in_state(resources, State.CANCELLED)
    assert len(log_of(resources, webhook.id)) == 2
    assert send_due_deliveries(resources) == 0
    again = webhooks.change_webhook(resources, OPERATOR, webhook.id, {"enabled": True})
    assert (again.enabled, again.disabled_reason) == (True, None)


def test_a_webhook_that_fails_for_days_is_disabled(resources: Resources, there: Receiver) -> None:
    there.statuses = [500]
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    for days, enabled in ((0, True), (4, True), (6, False)):
        sql(resources, f"UPDATE webhooks SET failing_since = now() - interval '{days} days'")
        be_due(resources)
        assert send_due_deliveries(resources) == 1
        assert shown(resources, made).enabled is enabled
    assert shown(resources, made).disabled_reason == "failing"


def test_a_disabled_webhook_receives_nothing(resources: Resources, there: Receiver) -> None:
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    taken = deliveries.claim_due(resources, 10)
    in_state(resources, State.CANCELLED)
    webhooks.change_webhook(resources, OPERATOR, made.id, {"enabled": False})
    in_state(resources, State.CANCELLED)
    assert send_due_deliveries(resources) == 0
    # The delivery that was being sent meanwhile keeps the state that disabling gave it.
    deliveries.record(resources, taken[0], deliveries.send(resources, taken[0]))
    assert [delivery.state for delivery in log_of(resources, made.id)] == ["failed", "failed"]


def test_after_rotation_both_secrets_sign_until_the_old_one_expires(
    resources: Resources, there: Receiver
) -> None:
    old = listen(resources, there.url)
    new = webhooks.rotate_secret(resources, OPERATOR, old.id)
    assert new.secret != old.secret
    in_state(resources, State.CANCELLED)
    send_due_deliveries(resources)
    sql(resources, "UPDATE webhooks SET previous_until = now() - interval '1 second'")
    in_state(resources, State.CANCELLED)
    send_due_deliveries(resources)
    during, later = there.received
    for secret in (new.secret, old.secret):
        during.verified(secret)
    later.verified(new.secret)
    assert len(later.headers["webhook-signature"].split()) == 1


def test_no_row_contains_a_secret(resources: Resources, there: Receiver) -> None:
    made = listen(resources, there.url)
    webhooks.rotate_secret(resources, OPERATOR, made.id)
    with resources.database.transaction() as transaction:
        row = transaction.execute(text("SELECT to_jsonb(webhooks)::text FROM webhooks")).scalar()
    assert made.secret.removeprefix("whsec_").rstrip("=") not in str(row)


def test_a_changed_signing_key_is_detected_and_not_used(
    settings: Settings, resources: Resources, there: Receiver
) -> None:
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    assert (
        send_due_deliveries(replace(resources, webhook_secrets=WebhookSecrets("another key"))) == 1
    )
    assert there.received == []
    (delivery,) = log_of(resources, made.id)
    assert delivery.state == "pending"
    assert "signing key has changed" in (delivery.last_error or "")


def test_concurrent_workers_send_each_delivery_once(resources: Resources, there: Receiver) -> None:
    webhook_ids = [listen(resources, there.url).id for _ in range(10)]
    in_state(resources, State.CANCELLED)
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        while send_due_deliveries(resources):
            pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(there.received) == 10
    assert len({request.id for request in there.received}) == 10
    for webhook_id in webhook_ids:
        (delivery,) = log_of(resources, webhook_id)
        assert (delivery.state, delivery.attempts) == ("delivered", 1)


def test_a_batch_claims_one_delivery_per_webhook(resources: Resources, there: Receiver) -> None:
    for _ in range(2):
        listen(resources, there.url)
    for _ in range(3):
        in_state(resources, State.CANCELLED)
    taken = deliveries.claim_due(resources, 100)
    assert len({delivery.webhook.id for delivery in taken}) == len(taken) == 2


KILLED_WHILE_SENDING = """
import os, signal
from app.services import deliveries
from app.services.resources import open_resources
from app.settings import Settings
resources = open_resources(Settings())
(due,) = deliveries.claim_due(resources, 10)
assert deliveries.send(resources, due).accepted
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_delivery_whose_worker_is_killed_after_sending_is_sent_again_with_the_same_id(
    settings: Settings, resources: Resources, there: Receiver
) -> None:
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    environment = {
        "INTRASLICE_DATABASE_URL": settings.database_url,
        "INTRASLICE_DATA_DIR": str(settings.data_dir),
        "INTRASLICE_WEBHOOK_ALLOW_LOOPBACK": "true",
    }
    command = [sys.executable, "-c", KILLED_WHILE_SENDING]
    killed = subprocess.run(
        command, env=_with_path(environment), check=False, capture_output=True, text=True
    )
    assert killed.returncode == -9, killed.stderr
    # The lease of the killed worker prevents other attempts until it expires.
    assert send_due_deliveries(resources) == 0
    be_due(resources)
    assert send_due_deliveries(resources) == 1
    first, second = there.received
    assert first.id == second.id
    assert first.body == second.body
    (delivery,) = log_of(resources, made.id)
    assert (delivery.state, delivery.attempts) == ("delivered", 2)


def _with_path(changes: dict[str, str]) -> dict[str, Any]:
    return {**os.environ, **changes}


def test_the_late_result_of_an_earlier_attempt_changes_nothing(
    resources: Resources, there: Receiver
) -> None:
    there.statuses = [500, 200]
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    (early,) = deliveries.claim_due(resources, 10)
    answer = deliveries.send(resources, early)
    be_due(resources)
    (late,) = deliveries.claim_due(resources, 10)
    deliveries.record(resources, late, deliveries.send(resources, late))
    deliveries.record(resources, early, answer)
    (delivery,) = log_of(resources, made.id)
    assert (delivery.state, delivery.last_status) == ("delivered", 200)


def test_finished_deliveries_are_deleted_after_the_retention_period(
    resources: Resources, there: Receiver
) -> None:
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    send_due_deliveries(resources)
    in_state(resources, State.CANCELLED)
    assert deliveries.prune(resources) == 0
    sql(resources, "UPDATE webhook_deliveries SET created_at = now() - interval '31 days'")
    assert deliveries.prune(resources) == 1
    assert [delivery.state for delivery in log_of(resources, made.id)] == ["pending"]


def test_deleting_a_webhook_deletes_its_deliveries(resources: Resources, there: Receiver) -> None:
    made = listen(resources, there.url)
    in_state(resources, State.CANCELLED)
    (taken,) = deliveries.claim_due(resources, 10)
    with pytest.raises(WebhookNotFoundError):
        webhooks.delete_webhook(resources, OTHER, made.id)
    webhooks.delete_webhook(resources, OPERATOR, made.id)
    deliveries.record(resources, taken, deliveries.send(resources, taken))
    be_due(resources)
    assert send_due_deliveries(resources) == 0


def test_events_of_jobs_of_another_project_are_not_delivered(
    resources: Resources, there: Receiver
) -> None:
    made = listen(resources, there.url, "job.queued")
    jobs.create_job(resources, OTHER, make_request())
    assert log_of(resources, made.id) == []
