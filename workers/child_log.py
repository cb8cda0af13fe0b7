"""The child's stderr: its log entries, and plain output of libraries and the interpreter."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from app.telemetry import get_logger

_LONGEST_LINE = 8192
_LONGEST_LAST_LINE = 500
_EOF_SECONDS = 2.0
_MOST_ENTRIES = 200
"""Entries that wait to be taken; of more, the oldest are dropped."""
_log = get_logger(__name__)


class ChildLog:
    """A thread that copies the child's stderr into the worker's log and into a file.

    A log entry of the child becomes an entry of the worker. Any other line becomes the text of a
    `child_output` entry. The last entries can also be taken, to be stored with the job.
    """

    def __init__(self, stream: IO[bytes], file: Path, context: Mapping[str, str]) -> None:
        self._stream = stream
        self._file = file
        self._context = context
        self._last_line = ""
        self._entries: deque[dict[str, Any]] = deque(maxlen=_MOST_ENTRIES)
        self._dropped = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True, name="child-log")
        self._thread.start()

    @property
    def context(self) -> Mapping[str, str]:
        """Fields that every entry of the child has."""
        return self._context

    def take(self) -> list[dict[str, Any]]:
        """Return the entries since the last call; the first says how many were dropped."""
        with self._lock:
            entries, dropped = list(self._entries), self._dropped
            self._entries.clear()
            self._dropped = 0
        if dropped:
            entries.insert(0, {"event": "lines_dropped", "level": "warning", "lines": dropped})
        return entries

    def last_line(self) -> str:
        """Return the last line that was not a log entry, waiting briefly for the end."""
        self._thread.join(_EOF_SECONDS)
        return self._last_line

    def close(self) -> None:
        """Read the rest, after the child has ended."""
        self._thread.join(_EOF_SECONDS)
        if not self._thread.is_alive():
            self._stream.close()

    def _read(self) -> None:
        with self._file.open("wb", buffering=0) as file:
            while line := self._stream.readline(_LONGEST_LINE):
                file.write(line)
                self._forward(line)

    def _forward(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        entry = _entry(text)
        if entry is not None:
            self._keep(dict(entry))
            level = logging.getLevelNamesMapping().get(
                str(entry.pop("level")).upper(), logging.INFO
            )
            _log.log(level, entry.pop("event"), **entry)
        elif text:
            self._last_line = text[-_LONGEST_LAST_LINE:]
            self._keep({"event": text, "level": "info"})
            _log.info("child_output", text=text, **{**self._context, "process": "child"})

    def _keep(self, entry: dict[str, Any]) -> None:
        entry.setdefault("timestamp", datetime.now(UTC).isoformat())
        with self._lock:
            self._dropped += len(self._entries) == _MOST_ENTRIES
            self._entries.append(entry)


def _entry(text: str) -> dict[str, Any] | None:
    """Return the line as a log entry; None if it is not one."""
    try:
        entry = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):  # deeper nesting than the parser allows
        return None
    return entry if isinstance(entry, dict) and {"event", "level"} <= entry.keys() else None
