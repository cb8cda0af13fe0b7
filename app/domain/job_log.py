"""Log of a job's engine process: the lines that are stored, bounded for each job.

Lines and events of a job share their sequence numbers. One number is therefore a place in both, and
a stream of both resumes after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

from pydantic import Field

from app.domain.events import Event
from app.domain.resource import ApiModel

MOST_LINES = 2000
"""Lines that are stored of one job; older ones are removed."""
MOST_BYTES = 2**20
"""Size of a job's stored lines, as JSON in UTF-8."""
LOG = "log"
"""The `event` of a `LogLine` message in a job's event stream."""
_INDENT = "\n    "

FieldValue = str | int | float | bool | None


class LogLevel(StrEnum):
    """Severity of a log line."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"

    def and_above(self) -> tuple[LogLevel, ...]:
        """Return this level and the more severe ones."""
        levels = tuple(LogLevel)
        return levels[levels.index(self) :]


@dataclass(frozen=True, kw_only=True)
class NewLogLine:
    """A line that is not stored yet."""

    time: datetime
    level: LogLevel
    event: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of the line in storage."""
        return len(self.event.encode()) + len(json.dumps(self.fields, ensure_ascii=False).encode())


class LogLine(ApiModel):
    """A line of the log of a job's engine process, without secrets and local paths."""

    sequence: int = Field(description="Number of the line, in one order with the job's events.")
    time: datetime = Field(description="Time by the clock of the worker.")
    attempt: int
    level: LogLevel
    event: str
    fields: dict[str, FieldValue]


Entry = Event | LogLine
"""An entry of a job's event stream."""


class LogLineList(ApiModel):
    """Part of a job's log lines, oldest first; the last `sequence` as `after` gives the next."""

    data: tuple[LogLine, ...]
    has_more: bool

    @classmethod
    def of(cls, lines: list[LogLine], limit: int) -> Self:
        """Return `limit` lines from a query for `limit` + 1."""
        return cls(data=tuple(lines[:limit]), has_more=len(lines) > limit)


def line_text(line: LogLine) -> str:
    """Return a line as plain text; values of several lines follow it, indented."""
    moment = line.time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    inline = " ".join(f"{name}={_shown(value)}" for name, value in _fields(line, long=False))
    head = f"{moment} {line.level.value.upper():8} attempt={line.attempt} {line.event}"
    blocks = [f"\n  {name}:{_INDENT}{_indented(value)}" for name, value in _fields(line, long=True)]
    return f"{head} {inline}".rstrip() + "".join(blocks)


def _fields(line: LogLine, *, long: bool) -> list[tuple[str, FieldValue]]:
    return [
        (name, value)
        for name, value in line.fields.items()
        if (isinstance(value, str) and "\n" in value) == long
    ]


def _indented(value: FieldValue) -> str:
    return str(value).replace("\n", _INDENT)


def _shown(value: FieldValue) -> str:
    """Return a value in one word: text with spaces, quotes or = is quoted as in JSON."""
    if not isinstance(value, str):
        return json.dumps(value)
    is_word = value != "" and not any(char.isspace() or char in "\"'=" for char in value)
    return value if is_word else json.dumps(value, ensure_ascii=False)
