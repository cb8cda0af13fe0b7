"""The HTTP surface of webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.domain.lifecycle import State
from app.domain.principal import Principal, Scope
from app.domain.webhook import WebhookRequest
from app.services import webhooks
from app.services.resources import Resources
from app.settings import Settings
from tests.app.builders import in_state
from tests.app.receivers import Receiver, receiver
from workers.periodic_tasks import send_due_deliveries

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
PATH = "/v1/webhooks"
# An address needs no resolver.
PUBLIC = "https://93.184.216.34/hook"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_loopback": True})


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


def create(client: TestClient, url: str = PUBLIC, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{PATH}/{answer.json()['id']}"
    made: dict[str, Any] = answer.json()
    return made


def deliveries(client: TestClient, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    path = f"{PATH}/{webhook['id']}/deliveries"
    listed: list[dict[str, Any]] = client.get(path).json()["data"]
    return listed


def test_the_secret_is_shown_once(client: TestClient) -> None:
    made = create(client, description="CI")
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made["events"] == ["job.cancelled", "job.failed", "job.succeeded"]
    assert (made["enabled"], made["description"], made["url"]) == (True, "CI", PUBLIC)
    assert client.get(f"{PATH}/{made['id']}").json() == made
    assert client.get(PATH).json() == {"data": [made], "has_more": False, "next_cursor": None}
    changed = client.patch(f"{PATH}/{made['id']}", json={"description": "other"}).json()
    assert changed == {**made, "description": "other"}
    rotated = client.post(f"{PATH}/{made['id']}/rotate").json()
    assert rotated.pop("secret") != secret
    assert rotated == changed


def test_a_webhook_is_deleted(client: TestClient) -> None:
    made = create(client)
    for status in (204, 404):
        assert client.delete(f"{PATH}/{made['id']}").status_code == status
    assert client.get(f"{PATH}/{made['id']}").json()["code"] == "webhook_not_found"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/url"),
        ({"url": "http://example.com/"}, "/url"),
        ({"url": "https://10.0.0.1/"}, "/url"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "/url"),
        ({"url": "https://user:word@93.184.216.34/"}, "/url"),
        ({"url": "https://93.184.216.34:25/"}, "/url"),
        ({"url": PUBLIC + "\0"}, "/url"),
        ({"url": PUBLIC, "events": []}, "/events"),
        ({"url": PUBLIC, "events": ["job.progress"]}, "/events/0"),
        ({"url": PUBLIC, "events": ["job.succeeded", "nonsense"]}, "/events/1"),
        ({"url": PUBLIC, "description": "x" * 257}, "/description"),
        ({"url": PUBLIC, "secret": "whsec_mine"}, "/secret"),
    ],
)
def test_invalid_fields_are_named(client: TestClient, body: dict[str, Any], pointer: str) -> None:
    rejected = client.post(PATH, json=body)
    assert rejected.status_code == 422
    assert rejected.json()["errors"][0]["pointer"] == pointer
    if body.keys() <= {"url"} and body:
        made = create(client)
        assert client.patch(f"{PATH}/{made['id']}", json=body).status_code == 422


def test_the_payload_is_the_job_as_returned_by_get(
    client: TestClient, resources: Resources
) -> None:
    with receiver() as there:
        made = create(client, there.url)
        job_id = in_state(resources, State.SUCCEEDED).id
        assert send_due_deliveries(resources) == 1
    payload = there.received[0].verified(made["secret"])
    shown = client.get(f"/v1/jobs/{job_id}").json()
    last = client.get(f"/v1/jobs/{job_id}/events").json()["data"][-1]
    assert payload["type"] == "job.succeeded"
    assert payload["timestamp"].removesuffix("+00:00") == last["created_at"].removesuffix("Z")
    # The payload has no links, since they are relative to the URL of the service.
    assert {"id", "state", "result", "labels"} <= payload["data"].keys() <= shown.keys()
    assert payload["data"] == {name: shown[name] for name in payload["data"]}


def test_deliveries_are_listed_and_sent_again(
    client: TestClient, resources: Resources, there: Receiver
) -> None:
    there.statuses = [500, 200]
    made = create(client, there.url)
    job_id = in_state(resources, State.FAILED).id
    (waiting,) = deliveries(client, made)
    again = f"{PATH}/{made['id']}/deliveries/{waiting['id']}/redeliver"
    assert (waiting["state"], waiting["attempts"], waiting["job_id"]) == ("pending", 0, job_id)
    assert client.post(again).json()["code"] == "delivery_pending"
    assert send_due_deliveries(resources) == 1
    (tried,) = deliveries(client, made)
    assert (tried["state"], tried["attempts"], tried["last_status"]) == ("pending", 1, 500)
    assert tried["next_try_at"] is not None
    assert client.get(f"{PATH}/{made['id']}").json()["failing_since"] is not None
    with resources.database.transaction() as transaction:
        transaction.execute(text("UPDATE webhook_deliveries SET next_try_at = now()"))
    assert send_due_deliveries(resources) == 1
    assert deliveries(client, made)[0]["state"] == "delivered"
    repeated = client.post(again)
    assert (repeated.status_code, repeated.json()["state"]) == (202, "pending")
    assert send_due_deliveries(resources) == 1
    assert [request.id for request in there.received] == [waiting["id"]] * 3
    unknown = again.replace(waiting["id"], "msg_00000000000000000000000000")
    assert client.post(unknown).json()["code"] == "delivery_not_found"


def test_a_test_event_is_sent_like_any_other(
    client: TestClient, resources: Resources, there: Receiver
) -> None:
    made = create(client, there.url)
    sent = client.post(f"{PATH}/{made['id']}/test")
    assert (sent.status_code, sent.json()["type"]) == (202, "webhook.test")
    assert send_due_deliveries(resources) == 1
    payload = there.received[0].verified(made["secret"])
    assert (payload["type"], payload["data"]["id"]) == ("webhook.test", made["id"])


def test_a_disabled_webhook_is_not_tested(client: TestClient) -> None:
    made = create(client, enabled=False)
    rejected = client.post(f"{PATH}/{made['id']}/test")
    assert (rejected.status_code, rejected.json()["code"]) == (409, "webhook_disabled")


def test_pages_contain_every_webhook_and_delivery_once_newest_first(
    client: TestClient, resources: Resources
) -> None:
    made = [create(client) for _ in range(3)]
    for _ in range(3):
        client.post(f"{PATH}/{made[0]['id']}/test")
    for path, expected in (
        (PATH, [webhook["id"] for webhook in reversed(made)]),
        (
            f"{PATH}/{made[0]['id']}/deliveries",
            [delivery["id"] for delivery in deliveries(client, made[0])],
        ),
    ):
        first = client.get(path, params={"limit": 2}).json()
        rest = client.get(path, params={"limit": 2, "after": first["next_cursor"]}).json()
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert [entry["id"] for entry in first["data"] + rest["data"]] == expected
        assert client.get(path, params={"after": "bm8"}).status_code == 422


def test_the_number_of_webhooks_of_a_project_is_limited(client: TestClient) -> None:
    for _ in range(webhooks.MAX_WEBHOOKS):
        create(client)
    assert client.post(PATH, json={"url": PUBLIC}).status_code == 422


def test_webhooks_of_another_project_are_not_found(
    client: TestClient, resources: Resources
) -> None:
    other = Principal(project_id="other", scopes=frozenset(Scope))
    request = WebhookRequest(url=PUBLIC, events=("job.failed",))
    theirs = webhooks.create_webhook(resources, other, request)
    delivery = webhooks.send_test(resources, other, theirs.id)
    base = f"{PATH}/{theirs.id}"
    for method, path in (
        ("GET", base),
        ("PATCH", base),
        ("DELETE", base),
        ("POST", f"{base}/rotate"),
        ("POST", f"{base}/test"),
        ("GET", f"{base}/deliveries"),
        ("POST", f"{base}/deliveries/{delivery.id}/redeliver"),
    ):
        answer = client.request(method, path, json={} if method == "PATCH" else None)
        assert (answer.status_code, answer.json()["code"]) == (404, "webhook_not_found")
    assert client.get(PATH).json()["data"] == []
    unchanged = webhooks.get_webhook(resources, other, theirs.id)
    assert unchanged.model_dump() == theirs.model_dump(exclude={"secret"})
