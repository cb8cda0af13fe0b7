"""Attempts of a delivery and the pauses between them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.domain.webhook import (
    ENDINGS,
    EVENT_NAMES,
    TRIES,
    Answer,
    DueDelivery,
    Secret,
    WebhookRecord,
    pause,
)

WEBHOOK = WebhookRecord(
    id="whk_1",
    project_id="default",
    url="https://example.com/",
    events=ENDINGS,
    description="",
    enabled=True,
    disabled_reason=None,
    created_at=datetime.now(UTC),
    failing_since=None,
    secret=Secret(salt="", fingerprint=""),
    previous_salt=None,
)
DOWN = Answer(status=503)


def after(tries: int) -> DueDelivery:
    return DueDelivery(
        id="msg_1", attempt=tries, tries_left=TRIES - tries, body="{}", webhook=WEBHOOK
    )


def test_pauses_grow_and_all_attempts_take_about_a_day() -> None:
    longest = [pause(after(tries), DOWN, 1.0) for tries in range(1, TRIES)]
    assert longest[:3] == [timedelta(seconds=seconds) for seconds in (20, 40, 80)]
    assert longest == sorted(longest)
    assert longest[-1] == timedelta(hours=8)
    whole = sum(longest, timedelta())
    assert timedelta(hours=43) < whole < timedelta(hours=44)
    mean = sum((pause(after(tries), DOWN, 0.5) for tries in range(1, TRIES)), timedelta())
    assert timedelta(hours=21) < mean < timedelta(hours=23)


def test_jitter_is_full() -> None:
    assert pause(after(10), DOWN, 0.0) == timedelta()
    assert pause(after(10), DOWN, 0.25) * 4 == pause(after(10), DOWN, 1.0)


def test_a_receiver_may_request_a_longer_pause_up_to_a_limit() -> None:
    ten_minutes = Answer(status=503, retry_after=600.0)
    assert pause(after(1), ten_minutes, 0.5) == timedelta(minutes=10)
    assert pause(after(1), Answer(status=503, retry_after=1e8), 0.5) == timedelta(hours=8)


def test_default_events_are_the_ends_of_a_job_and_progress_is_never_sent() -> None:
    assert set(ENDINGS) == {"job.succeeded", "job.failed", "job.cancelled"}
    assert set(ENDINGS) < set(EVENT_NAMES)
    assert "job.progress" not in EVENT_NAMES
