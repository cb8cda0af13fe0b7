"""The message that wakes a worker is sent eventually, even after a broker outage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from app.adapters.queue import queue_name
from app.adapters.valkey import client_url
from app.embedded.valkey import EmbeddedValkey
from app.services import outbox
from app.services.resources import Resources, open_resources
from app.settings import Settings
from tests.app.builders import queued

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def messages(settings: Settings) -> int:
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT id FROM deployment").fetchone()
    assert row is not None
    with redis.Redis.from_url(client_url(settings.broker_url)) as client:
        return int(client.llen(queue_name(row[0])))  # type: ignore[arg-type]


def pending(settings: Settings) -> int:
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT count(*) FROM outbox").fetchone()
    assert row is not None
    return int(row[0])


def test_a_message_is_written_with_the_job_and_sent_once(
    resources: Resources, settings: Settings
) -> None:
    queued(resources)
    assert (pending(settings), messages(settings)) == (1, 0)
    assert outbox.dispatch(resources) == 1
    assert (pending(settings), messages(settings)) == (0, 1)
    assert outbox.dispatch(resources) == 0


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path / "own-valkey")
    server.start()
    yield server
    server.stop()


def with_broker(settings: Settings, broker: EmbeddedValkey) -> Settings:
    return settings.model_copy(update={"broker_url": broker.url})


def test_a_broker_outage_loses_no_message(settings: Settings, own_broker: EmbeddedValkey) -> None:
    resources = open_resources(with_broker(settings, own_broker))
    queued(resources)
    assert outbox.dispatch(resources) == 1
    own_broker.stop()
    for _ in range(2):
        queued(resources)
        assert outbox.dispatch(resources) == 0
    assert pending(settings) == 2
    resources.close()
    own_broker.start()
    resources = open_resources(with_broker(settings, own_broker))
    assert outbox.dispatch(resources) == 2
    assert messages(with_broker(settings, own_broker)) == 3
    resources.close()


def test_messages_of_a_waiting_job_are_repeated_with_growing_pauses(
    resources: Resources, settings: Settings
) -> None:
    job = queued(resources)
    outbox.dispatch(resources)
    assert outbox.remind(resources) == 0
    for expected in (120, 240, 480):
        with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
            connection.execute("UPDATE jobs SET next_hint_at = now() - interval '1 second'")
        assert outbox.remind(resources) == 1
        assert outbox.remind(resources) == 0
        with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
            row = connection.execute(
                "SELECT extract(epoch FROM next_hint_at - now()) FROM jobs WHERE id = %s", [job.id]
            ).fetchone()
        assert row is not None
        assert float(row[0]) == pytest.approx(expected, abs=5)
    assert outbox.dispatch(resources) == 3


def test_a_failed_dispatch_raises_no_error(settings: Settings) -> None:
    url = "postgresql+psycopg://nobody@/none?host=/nonexistent"
    resources = open_resources(settings.model_copy(update={"database_url": url}))
    outbox.dispatch_soon(resources)
    resources.close()
