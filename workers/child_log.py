"""What a child writes to stderr: its log lines, and the words of libraries and interpreters."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from app.telemetry import get_logger

_LONGEST_LINE = 8192
_LAST_WORDS = 500
_EOF_SECONDS = 2.0
_log = get_logger(__name__)


class ChildLog:
    """Writes the child's lines into our own log, and keeps its last words.

    An entry of the child's log becomes one of ours; any other line becomes the text of an entry
    that says whose words they are. All of it is in `file` too, as long as the attempt lasts.
    """

    def __init__(self, stream: IO[bytes], file: Path, context: Mapping[str, str]) -> None:
        self._stream = stream
        self._file = file
        self._context = context
        self._last_words = ""
        self._thread = threading.Thread(target=self._read, daemon=True, name="child-log")
        self._thread.start()

    def last_words(self) -> str:
        """The last line that was no log entry."""
        self._thread.join(_EOF_SECONDS)
        return self._last_words

    def close(self) -> None:
        """After the child's end: hear the rest."""
        self._thread.join(_EOF_SECONDS)
        if not self._thread.is_alive():
            self._stream.close()

    def _read(self) -> None:
        with self._file.open("wb", buffering=0) as file:
            while line := self._stream.readline(_LONGEST_LINE):
                file.write(line)
                self._pass_on(line)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        entry = _entry(text)
        if entry is not None:
            level = logging.getLevelNamesMapping().get(
                str(entry.pop("level")).upper(), logging.INFO
            )
            _log.log(level, entry.pop("event"), **entry)
        elif text:
            self._last_words = text[-_LAST_WORDS:]
            _log.info("child_output", text=text, **{**self._context, "process": "child"})


def _entry(text: str) -> dict[str, Any] | None:
    """The line as a log entry, if it is one."""
    try:
        entry = json.loads(text) if text.startswith("{") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"event", "level"} <= entry.keys() else None
