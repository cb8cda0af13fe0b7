"""Seconds of a job's stages, from the events of the API."""

from __future__ import annotations

from typing import Any

from benchmarks.job_stages import stage_seconds


def event(second: float, stage: str | None = None) -> dict[str, Any]:
    data = {} if stage is None else {"stage": stage}
    return {"created_at": f"2026-11-29T12:00:{second:09.6f}+00:00", "data": data}


def test_each_stage_lasts_until_the_event_of_the_next_one() -> None:
    events = [event(0), event(2), event(3, "load"), event(4.5, "allocate"), event(10, "allocate")]
    assert stage_seconds(events) == {"waiting": 3.0, "load": 1.5, "allocate": 5.5}


def test_events_without_a_stage_belong_to_the_stage_before_them() -> None:
    events = [event(0, "compress"), event(5), event(7, "publish"), event(8)]
    assert stage_seconds(events) == {"compress": 7.0, "publish": 1.0}
