"""A worker waits for its servers, and reports their outages once instead of at every attempt."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from app.adapters.database.migrate import upgrade
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.valkey import EmbeddedValkey
from app.settings import Settings
from tests.workers.test_worker import wait_for, worker

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def entries(log: Path) -> list[dict[str, Any]]:
    """Return the log lines; Celery's own farewell is none of them."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{")]


def outages(log: Path) -> list[tuple[str, str]]:
    return [(line["server"], line["event"]) for line in entries(log) if "server" in line]


def test_a_worker_reports_outages_once_and_works_on(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    database = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    broker = EmbeddedValkey(tmp_path / "valkey")
    with database, broker:
        own = settings.model_copy(
            update={"database_url": database.url, "broker_url": broker.url, "log_format": "json"}
        )
        upgrade(own)
        database.stop()
        with worker(own, log) as process:
            expected = [("database", "server_unavailable")]
            wait_for(lambda: outages(log) == expected, log)
            database.start()
            wait_for(lambda: any(e["event"] == "worker_started" for e in entries(log)), log)
            expected += [("database", "server_available_again")]
            broker.stop()
            expected += [("broker", "server_unavailable")]
            wait_for(lambda: outages(log) == expected, log)
            time.sleep(2.0)
            broker.start()
            expected += [("broker", "server_available_again")]
            wait_for(lambda: outages(log) == expected, log)
            # The database's first warning is younger than a minute: no second one.
            database.stop()
            time.sleep(2.0)
            database.start()
            process.terminate()
            assert process.wait(20) == 0, log.read_text()
    assert outages(log) == expected
    (again,) = [e for e in entries(log) if e.get("server") == "broker" and "again" in e["event"]]
    assert again["attempts_suppressed"] > 3
    others = [
        line
        for line in entries(log)
        if line["level"] in ("warning", "error")
        and "server" not in line
        and line["event"] != "worker_silent"  # no heartbeat arrived while the database was away
    ]
    assert [line["event"] for line in others if "superuser" not in line["event"]] == [
        "environment",
        "environment",
    ]
