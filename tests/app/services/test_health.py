"""Readiness responds in time even if a server hangs."""

from __future__ import annotations

import threading
from dataclasses import replace

from app.domain.errors import StoreUnavailableError
from app.services.health import HealthProbe
from app.services.resources import Resources


def test_a_server_that_hangs_is_named_and_checked_once(resources: Resources) -> None:
    answer, calls = threading.Event(), []

    class HangingStore:
        place = "s3://bucket at http://s3:8333"

        def check(self) -> None:
            calls.append(1)
            answer.wait(30)

        def read(self, _key: str) -> bytes:
            raise StoreUnavailableError

    probe = HealthProbe(replace(resources, store=HangingStore()), answer_seconds=0.5)
    for _ in range(3):
        problems = {check.name: check.problem for check in probe.check_all()}
        assert problems["store"] == (
            "The artifact store s3://bucket at http://s3:8333: no answer within 0.5 s"
        )
    assert len(calls) == 1
    answer.set()
    probe.close()


def test_a_check_that_raises_is_reported_as_a_problem(resources: Resources) -> None:
    class BrokenStore:
        place = "s3://bucket"

        def check(self) -> None:
            raise ZeroDivisionError

        def read(self, _key: str) -> bytes:
            raise StoreUnavailableError

    probe = HealthProbe(replace(resources, store=BrokenStore()))
    problems = {check.name: check.problem for check in probe.check_all()}
    assert problems == {
        "database": None,
        "broker": None,
        "store": "The check itself failed with ZeroDivisionError",
        "deployment": None,
    }
    probe.close()
