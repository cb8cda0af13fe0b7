"""Two processes of a deployment while its keys are replaced as in docs/rotate-keys.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.domain.lifecycle import State
from app.domain.principal import OPERATOR
from app.domain.webhook import WebhookRequest
from app.main import create_app
from app.services import webhooks
from app.services.resources import Resources, open_resources
from app.settings import Settings
from tests.app.api.test_metrics import values as metric
from tests.app.builders import in_state
from tests.app.receivers import receiver
from workers.periodic_tasks import send_due_deliveries

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
PAGE = Path(__file__).parents[3] / "docs" / "rotate-keys.md"
OLD, NEW = "old-key-of-the-operator", "new-key-of-the-operator"
OLD_SIGNING, NEW_SIGNING = "old-key-that-signs-links", "new-key-that-signs-links"
SIGNING_STEPS = (
    {"signing_key": OLD_SIGNING},
    {"signing_key": OLD_SIGNING, "signing_key_previous": NEW_SIGNING},
    {"signing_key": NEW_SIGNING, "signing_key_previous": OLD_SIGNING},
    {"signing_key": NEW_SIGNING},
)
Start = Callable[..., TestClient]


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """Start a process of the deployment with the given keys."""
    with ExitStack() as stack:

        def begin(**keys: str) -> TestClient:
            changed = Settings(**settings.model_dump() | {"auth": "on"} | keys)
            return stack.enter_context(TestClient(create_app(changed)))

        yield begin


def status(client: TestClient, key: str) -> int:
    answer = client.get("/v1/jobs", headers={"authorization": f"Bearer {key}"})
    return answer.status_code


def resources_of(client: TestClient) -> Resources:
    resources: Resources = client.app.state.resources  # type: ignore[attr-defined]
    return resources


def test_the_previous_operator_key_is_accepted_until_it_is_removed(start: Start) -> None:
    before, during = start(api_key=OLD), start(api_key=NEW, api_key_previous=OLD)
    assert [status(before, OLD), status(before, NEW)] == [200, 401]
    assert [status(during, OLD), status(during, NEW)] == [200, 200]
    for near_miss in (OLD[:-1], f"{OLD}x", f"{NEW}{OLD}"):
        assert status(during, near_miss) == 401
    after = start(api_key=NEW)
    assert [status(after, OLD), status(after, NEW)] == [401, 200]


def test_uses_of_the_previous_operator_key_are_counted_and_logged_once_a_minute(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 101.0, 159.0, 160.0])
    monkeypatch.setattr("app.api.operator_keys.monotonic", lambda: next(clock))
    client = start(api_key=NEW, api_key_previous=OLD, metrics_open=True)
    name = "intraslice_previous_operator_key_requests_total"
    before = metric(client, name)[()]
    with structlog.testing.capture_logs() as logs:
        for _ in range(4):
            assert status(client, OLD) == 200
        assert status(client, NEW) == 200
        assert status(client, "a wrong key") == 401
    assert metric(client, name)[()] == before + 4
    lines = [line for line in logs if line["event"] == "previous_operator_key"]
    assert len(lines) == 2, "at 100 s and 160 s"
    assert lines[0]["effect"] == "the previous operator key is still in use"
    assert lines[0]["address"] == "testclient"
    assert OLD not in str(logs)


def test_links_work_at_every_process_while_the_signing_key_is_replaced(start: Start) -> None:
    processes = [start(**keys) for keys in SIGNING_STEPS]
    job = in_state(resources_of(processes[0]), State.SUCCEEDED)
    links = [resources_of(each).signer.sign(job.id, "config.json", 600) for each in processes]
    numbers = range(len(processes))
    for earlier, later in pairwise(numbers[:-1]):
        assert processes[later].get(links[earlier]).status_code == 200
        assert processes[earlier].get(links[later]).status_code == 200
    # The last step follows when the links of the old key have expired.
    assert processes[3].get(links[2]).status_code == 200
    assert processes[3].get(links[1]).status_code == 403
    # A single step would break links, which is why there are two.
    assert processes[0].get(links[3]).status_code == 403


def test_webhooks_keep_their_secrets_until_each_is_rotated(
    start: Start, settings: Settings
) -> None:
    local = settings.model_copy(update={"webhook_allow_loopback": True})
    with receiver() as there, ExitStack() as stack:

        def worker(step: int) -> Resources:
            opened = open_resources(Settings(**local.model_dump() | SIGNING_STEPS[step]))
            stack.callback(opened.close)
            return opened

        def signatures(sender: Resources, *secrets: str) -> int:
            """Deliver one event that every secret verifies; return its number of signatures."""
            in_state(sender, State.CANCELLED)
            assert send_due_deliveries(sender) == 1
            for secret in secrets:
                there.received[-1].verified(secret)
            return len(there.received[-1].headers["webhook-signature"].split())

        request = WebhookRequest(url=there.url, events=("job.cancelled",))
        old = webhooks.create_webhook(worker(0), OPERATOR, request)
        api = start(**SIGNING_STEPS[2], metrics_open=True)
        assert signatures(worker(1), old.secret) == 1
        assert signatures(worker(2), old.secret) == 1
        assert metric(api, "intraslice_webhooks_on_previous_key") == {(): 1.0}
        new = webhooks.rotate_secret(worker(2), OPERATOR, old.id)
        assert signatures(worker(2), new.secret, old.secret) == 3
        assert metric(api, "intraslice_webhooks_on_previous_key") == {(): 0.0}
        assert signatures(worker(3), new.secret) == 2


def test_the_documented_query_lists_webhooks_with_a_secret_older_than_a_time(
    resources: Resources,
) -> None:
    query = re.search(r'-c "(SELECT.+?)"', PAGE.read_text("utf-8"), re.S)
    assert query
    request = WebhookRequest(url="https://93.184.216.34/", events=("job.cancelled",))
    left, done = (webhooks.create_webhook(resources, OPERATOR, request) for _ in range(2))
    with resources.database.transaction() as transaction:
        switched = transaction.scalar(text("SELECT clock_timestamp()"))
    webhooks.rotate_secret(resources, OPERATOR, done.id)
    webhooks.create_webhook(resources, OPERATOR, request)
    statement = query[1].replace("2026-01-31 12:00Z", str(switched))
    with resources.database.transaction() as transaction:
        rows = transaction.execute(text(statement)).all()
    assert [tuple(row) for row in rows] == [(left.id, OPERATOR.project_id, left.url)]


def test_the_log_names_webhooks_that_need_the_previous_signing_key(
    resources: Resources, settings: Settings
) -> None:
    local = settings.model_copy(update={"webhook_allow_loopback": True})
    with receiver() as there:
        opened = open_resources(Settings(**local.model_dump() | SIGNING_STEPS[0]))
        request = WebhookRequest(url=there.url, events=("job.cancelled",))
        made = webhooks.create_webhook(opened, OPERATOR, request)
        in_state(opened, State.CANCELLED)
        opened.close()
        during = open_resources(Settings(**local.model_dump() | SIGNING_STEPS[2]))
        with structlog.testing.capture_logs() as logs:
            send_due_deliveries(during)
        during.close()
    (line,) = [line for line in logs if line["event"] == "webhook_on_previous_key"]
    assert (line["webhook_id"], line["project_id"]) == (made.id, OPERATOR.project_id)
    assert made.secret not in str(logs)
