"""A child's words end up in the worker's log, as entries that name the job."""

from __future__ import annotations

import io
from pathlib import Path

from structlog.testing import capture_logs

from workers.child_log import ChildLog

CONTEXT = {"job_id": "job_1", "attempt": "2"}


def heard(said: bytes, file: Path) -> tuple[list[dict[str, object]], str]:
    with capture_logs() as entries:
        log = ChildLog(io.BytesIO(said), file, CONTEXT)
        words = log.last_line()
        log.close()
    return [dict(entry) for entry in entries], words


def test_entries_stay_entries_and_other_lines_become_some(tmp_path: Path) -> None:
    said = (
        b'{"event": "layer", "level": "warning", "layer": 3, "job_id": "job_1"}\nplain w\xf6rds\n\n'
    )
    entries, words = heard(said, tmp_path / "log")
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
    assert words == "plain w\ufffdrds"
    assert len(entries) == 2
    assert (tmp_path / "log").read_bytes() == said


def test_what_only_looks_like_an_entry_is_text(tmp_path: Path) -> None:
    entries, words = heard(b'{"event": 1}\n{broken\n[1]\n', tmp_path / "log")
    assert [entry["text"] for entry in entries] == ['{"event": 1}', "{broken", "[1]"]
    assert words == "[1]"


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    entries, words = heard(b"x" * 100_000, tmp_path / "log")
    assert max(len(str(entry["text"])) for entry in entries) <= 8192
    assert len(words) <= 500
