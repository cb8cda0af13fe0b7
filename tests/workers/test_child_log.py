"""The child's stderr in the worker's log: entries and plain lines."""

from __future__ import annotations

import io
from pathlib import Path

from structlog.testing import capture_logs

from workers.child_log import ChildLog

CONTEXT = {"job_id": "job_1", "attempt": "2"}


def copy(stderr: bytes, file: Path) -> tuple[list[dict[str, object]], str]:
    with capture_logs() as entries:
        log = ChildLog(io.BytesIO(stderr), file, CONTEXT)
        last_line = log.last_line()
        log.close()
    return [dict(entry) for entry in entries], last_line


def test_entries_are_forwarded_and_other_lines_become_entries(tmp_path: Path) -> None:
    stderr = (
        b'{"event": "layer", "level": "warning", "layer": 3, "job_id": "job_1"}\nplain w\xf6rds\n\n'
    )
    entries, last_line = copy(stderr, tmp_path / "log")
    assert entries[0]["event"] == "layer"
    assert (entries[0]["log_level"], entries[0]["layer"]) == ("warning", 3)
    assert entries[1] == {
        "event": "child_output",
        "text": "plain w\ufffdrds",
        "process": "child",
        "module": "workers.child_log",
        "log_level": "info",
        **CONTEXT,
    }
    assert last_line == "plain w\ufffdrds"
    assert len(entries) == 2
    assert (tmp_path / "log").read_bytes() == stderr


def test_other_json_is_plain_text(tmp_path: Path) -> None:
    entries, last_line = copy(b'{"event": 1}\n{broken\n[1]\n', tmp_path / "log")
    assert [entry["text"] for entry in entries] == ['{"event": 1}', "{broken", "[1]"]
    assert last_line == "[1]"


def test_entries_are_taken_once_and_the_newest_are_kept(tmp_path: Path) -> None:
    stderr = b"".join(
        b'{"event": "%d", "level": "info", "job_id": "job_1"}\n' % n for n in range(250)
    )
    log = ChildLog(io.BytesIO(stderr + b"plain\n"), tmp_path / "log", CONTEXT)
    log.close()
    dropped, *entries = log.take()
    assert (dropped["event"], dropped["lines"]) == ("lines_dropped", 51)
    assert [entry["event"] for entry in entries] == [*map(str, range(51, 250)), "plain"]
    assert (entries[0]["level"], entries[0]["job_id"]) == ("info", "job_1")
    assert all("timestamp" in entry for entry in entries)
    assert log.take() == []


def test_a_line_nested_too_deeply_is_plain_text(tmp_path: Path) -> None:
    line = b'{"event": "e", "level": "info", "deep": ' + b"[" * 4000 + b"]" * 4000 + b"}"
    entries, _last = copy(line, tmp_path / "log")
    assert len(entries) == 1


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    entries, last_line = copy(b"x" * 100_000, tmp_path / "log")
    assert max(len(str(entry["text"])) for entry in entries) <= 8192
    assert len(last_line) <= 500
