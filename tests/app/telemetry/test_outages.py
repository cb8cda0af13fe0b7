"""Outages are logged at once, then once a minute, then when they end."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from app.telemetry.outages import BROKER, DATABASE, Outages, unreported

Line = tuple[Any, ...]


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outages(clock: Clock) -> Outages:
    return Outages(clock)


def short(lines: list[Any]) -> list[Line]:
    return [(line["event"], line["server"], line.get("attempts_suppressed")) for line in lines]


def test_an_outage_is_a_first_line_a_line_a_minute_and_a_last_one(
    outages: Outages, clock: Clock
) -> None:
    with capture_logs() as lines:
        for _ in range(150):
            outages.note_failure(DATABASE, "refused")
            clock.now += 1.0
        outages.note_success(DATABASE)
        outages.note_success(DATABASE)
    assert short(lines) == [
        ("server_unavailable", "database", None),
        ("server_still_unavailable", "database", 59),
        ("server_still_unavailable", "database", 59),
        ("server_available_again", "database", 29),
    ]
    assert (lines[0]["reason"], lines[-1]["seconds"]) == ("refused", 150)


def test_servers_have_outages_of_their_own(outages: Outages) -> None:
    with capture_logs() as lines:
        outages.note_failure(DATABASE, "refused")
        outages.note_failure(BROKER, "refused")
    assert [line["server"] for line in lines] == ["database", "broker"]


def test_a_server_that_comes_and_goes_causes_two_lines_a_minute(
    outages: Outages, clock: Clock
) -> None:
    with capture_logs() as lines:
        for _ in range(121):
            outages.note_failure(DATABASE, "refused")
            outages.note_success(DATABASE)
            clock.now += 1.0
    assert [line["event"] for line in lines] == [
        "server_unavailable",
        "server_available_again",
    ] * 3


def test_an_outage_counts_for_some_time_after_its_end(outages: Outages, clock: Clock) -> None:
    assert not outages.lasted_within(DATABASE, 10.0)
    outages.note_failure(DATABASE, "refused")
    clock.now += 60.0
    assert outages.lasted_within(DATABASE, 10.0)
    outages.note_success(DATABASE)
    clock.now += 10.0
    assert outages.lasted_within(DATABASE, 10.0)
    assert not outages.lasted_within(BROKER, 10.0)
    clock.now += 0.1
    assert not outages.lasted_within(DATABASE, 10.0)


def test_failures_that_the_caller_reports_are_not_logged(outages: Outages) -> None:
    with capture_logs() as lines, unreported():
        outages.note_failure(DATABASE, "refused")
    assert lines == []
