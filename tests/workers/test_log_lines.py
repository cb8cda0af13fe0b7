"""Lines that are stored: any entry of a process can be, and none tells secrets or paths."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.domain.job_log import LogLevel, NewLogLine
from app.settings import Settings
from app.telemetry.redaction import Redaction
from workers.log_journal import log_redaction
from workers.log_lines import MOST_CHARACTERS, log_line

SECRET = "hunter-two"
REDACTION = Redaction([SECRET], [Path("/srv/ours")])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def line(**entry: Any) -> NewLogLine:
    return log_line({"event": "e", "level": "info", **entry}, REDACTION)


@hypothesis_settings(max_examples=50)
@given(st.dictionaries(st.text(), VALUES, max_size=6), VALUES, VALUES, VALUES)
def test_every_entry_becomes_a_line_that_can_be_stored(
    fields: dict[str, Any], event: Any, level: Any, timestamp: Any
) -> None:
    entry = fields | {"event": event, "level": level, "timestamp": timestamp}
    made = log_line(entry, REDACTION)
    assert json.loads(json.dumps(dict(made.fields), allow_nan=False)) == made.fields
    text = made.event + "".join(f"{name}{value}" for name, value in made.fields.items())
    assert SECRET not in text
    assert "\0" not in text
    assert "\n" not in made.event
    assert text.encode().decode() == text
    assert all(isinstance(value, str | int | float | None) for value in made.fields.values())
    assert made.time.tzinfo is not None


def test_lines_are_bounded() -> None:
    many = line(**{f"name {number} {'x' * 100}": "y" * 10_000 for number in range(100)})
    assert len(many.fields) == 32
    assert max(map(len, many.fields)) <= 64
    assert all(len(str(value)) == MOST_CHARACTERS for value in many.fields.values())
    assert many.bytes < 2**18


def test_a_secret_at_the_cut_is_removed_whole() -> None:
    text = "x" * (MOST_CHARACTERS - 3) + SECRET
    assert "hun" not in str(line(text=text).fields["text"])


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (float("nan"), "nan"),
        (2**60, str(2**60)),
        ({"a": [1, SECRET]}, '{"a": [1, "[secret]"]}'),
        ("\x1b[31mred\x1b[0m\rover\x07", "red\nover\ufffd"),
        ("in /srv/ours/x", "in …/x"),
    ],
)
def test_values_are_flat_and_printable(value: Any, stored: str) -> None:
    assert line(value=value).fields["value"] == stored


def test_common_fields_have_a_place_of_their_own() -> None:
    entry = {
        "event": "layer_finished",
        "level": "WARN",
        "timestamp": "2026-03-01T12:00:00Z",
        "module": "workers.child",
        "process": "child",
        "job_id": "job_1",
        "layer": 3,
    }
    made = log_line(entry, REDACTION, omitted={"job_id"})
    assert (made.level, made.event, dict(made.fields)) == (
        LogLevel.WARNING,
        "layer_finished",
        {"layer": 3},
    )
    assert made.time == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert line(level="nonsense").level is LogLevel.INFO


def test_the_workers_own_and_inherited_secrets_are_redacted(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "data dir", database_url="postgresql://u:our-password@host/db"
    )
    environment = {"HF_TOKEN": "an-inherited-token", "PATH": "/usr/bin", "HOME": "/home/someone"}
    redact = log_redaction(settings, environment)
    text = redact(f"our-password an-inherited-token {tmp_path}/data dir/work /home/someone/x")
    assert text == "[secret] [secret] …/work …/x"
