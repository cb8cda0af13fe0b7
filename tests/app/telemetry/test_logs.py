"""Log lines: one JSON object per entry, without secrets."""

from __future__ import annotations

import json
import subprocess
import sys

SETUP = """
import logging, structlog, warnings
from app.telemetry import configure_logging, get_logger
secrets = ("hunter-two", 'quo"ted')
configure_logging({level!r}, {format!r}, secrets=secrets, fixed={{"process": "api"}})
log = get_logger("some.module")
"""


def stderr_of(code: str, level: str = "INFO", log_format: str = "json") -> list[str]:
    """Return the lines that a process with this code writes to stderr."""
    script = SETUP.format(level=level, format=log_format) + code
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_library_entries_have_the_same_form_and_fields() -> None:
    code = """
with structlog.contextvars.bound_contextvars(request_id="r-1"):
    log.info("ours", number=1)
    logging.getLogger("library").warning("theirs %s", "too")
    warnings.warn("a warning", stacklevel=1)
"""
    ours, theirs, warning = map(json.loads, stderr_of(code))
    assert (ours["event"], ours["number"], ours["module"]) == ("ours", 1, "some.module")
    assert (theirs["event"], theirs["logger"]) == ("theirs too", "library")
    assert "a warning" in warning["event"]
    for entry in (ours, theirs, warning):
        assert entry["process"] == "api"
        assert entry["request_id"] == "r-1"
        assert {"level", "timestamp"} <= entry.keys()


def test_secrets_are_removed_from_every_source() -> None:
    code = """
log.info("key hunter-two", url="redis://:hunter-two@host", other='quo"ted')
try:
    raise ValueError("with hunter-two inside")
except ValueError:
    log.exception("crashed")
logging.getLogger("library").error("hunter-two")
"""
    lines = stderr_of(code)
    assert len(lines) == 3
    assert all(json.loads(line) for line in lines)
    text = "\n".join(lines)
    assert text.count("[secret]") >= 5
    assert "hunter-two" not in text
    assert 'quo\\"ted' not in text


def test_libraries_log_only_warnings() -> None:
    code = """
log.debug("no"); log.info("yes")
logging.getLogger("library").info("no")
logging.getLogger("uvicorn.error").info("yes")
"""
    assert [json.loads(line)["event"] for line in stderr_of(code)] == ["yes", "yes"]


def test_the_console_format_is_plain_text() -> None:
    (line,) = stderr_of('log.info("an event", number=1)', log_format="console")
    assert "an event" in line
    assert not line.startswith("{")
