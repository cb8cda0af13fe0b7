"""Entries of an engine process's log as lines to store: bounded, flat, and without secrets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from app.domain.job_log import FieldValue, LogLevel, NewLogLine
from app.telemetry.redaction import Redaction

MOST_CHARACTERS = 4096
"""Length of an event and of a value; the rest is cut off."""
_MOST_FIELDS = 32
_MOST_NAME_CHARACTERS = 64
_LARGEST_INTEGER = 2**53
_COMMON = frozenset({"event", "level", "timestamp", "module", "process", "trace_id"})
"""Fields that have a place of their own, or are the same in every line."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that a terminal would obey, or that the database cannot store."""
_LEVELS = {level.value: level for level in LogLevel} | {
    "warn": LogLevel.WARNING,
    "exception": LogLevel.ERROR,
    "fatal": LogLevel.CRITICAL,
}
_YEARS = range(2000, 2200)
"""Years of a timestamp that is believed."""


def log_line(
    entry: Mapping[str, Any], redaction: Redaction, omitted: Collection[str] = ()
) -> NewLogLine:
    """Return an entry as a line.

    Args:
        entry: `event`, `level` and any other fields; without a valid `timestamp`, it is of now.
        redaction: removes secrets and paths from all texts.
        omitted: names of further fields to leave out.
    """
    names = [name for name in entry if name not in _COMMON and name not in omitted]
    fields = {
        _text(name, redaction)[:_MOST_NAME_CHARACTERS]: _value(entry[name], redaction)
        for name in names[:_MOST_FIELDS]
    }
    return NewLogLine(
        time=_time(entry.get("timestamp")),
        level=_LEVELS.get(str(entry["level"]).lower(), LogLevel.INFO),
        event=" ".join(_text(str(entry["event"]), redaction).split("\n")),
        fields=fields,
    )


def _text(text: str, redaction: Redaction) -> str:
    """Return a text that can be stored and printed, cut and redacted."""
    lines = _COLOURS.sub("", text.replace("\r\n", "\n")).replace("\r", "\n")
    printable = _CONTROL.sub("\ufffd", lines)
    # Redacted before it is cut, so that no half of a secret is left.
    return redaction(printable)[:MOST_CHARACTERS]


def _value(value: Any, redaction: Redaction) -> FieldValue:
    """Return a scalar that JSON and the database can hold; lists and objects become texts."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) <= _LARGEST_INTEGER:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _text(_nested(value) if isinstance(value, list | dict) else str(value), redaction)


def _nested(value: list[Any] | dict[str, Any]) -> str:
    """Return a list or an object as JSON; a placeholder if it is nested too deeply."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "[nested too deeply]"


def _time(text: Any) -> datetime:
    """Return the time of an ISO 8601 text, or now if it is none or far away."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.now(UTC)
    if moment.year not in _YEARS:
        return datetime.now(UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
