"""Seconds of a job's stages, from the events that the API returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any


def stage_seconds(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds of every stage, from each of its events to the next event.

    What comes before the first stage is `waiting`.
    """
    seconds: dict[str, float] = {}
    stage = "waiting"
    for event, following in pairwise(events):
        stage = event["data"].get("stage") or stage
        begun, ended = (datetime.fromisoformat(each["created_at"]) for each in (event, following))
        seconds[stage] = seconds.get(stage, 0.0) + (ended - begun).total_seconds()
    return {name: round(value, 1) for name, value in seconds.items()}
