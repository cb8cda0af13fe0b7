"""Records and fields of uploaded texts, checked before a job names them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.upload import TextColumns
from app.services.text_contents import has_records, read_columns
from intraslice_core.errors import CalibrationSourceError


def nothing() -> None:
    """No-op callback."""


def columns(place: Path, content: str, name: str = "corpus.jsonl") -> TextColumns:
    file = place / name
    file.write_bytes(content.encode())
    return read_columns(file, nothing)


def lines(*records: object) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def test_texts_in_a_known_form_need_no_field(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    read = columns(tmp_path, lines({"text": "a"}, chat, "only a string"))
    assert read.problem(None) is None
    assert read.problem("text") == "line 2 has no text in the field 'text'"


def test_another_field_must_be_named_and_be_in_every_record(tmp_path: Path) -> None:
    read = columns(tmp_path, lines({"body": "a", "n": 1}, {"body": "b", "title": "t", "n": 2}))
    assert read.problem("body") is None
    assert read.problem(None) == (
        "line 1: none of its fields is known (fields: body, n); name the field that holds the text "
        "in text_field, or call it text (possible: body)"
    )
    assert read.problem("title") == "line 1 has no text in the field 'title' (possible: body)"
    assert read.problem("n") == "no record has text in the field 'n' (possible: body)"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('{"text": "a"}\n{"text"\n', "c.jsonl", "line 2: not JSON"),
        ('{"text": "a"}\nplain words\n', "c.jsonl", "line 2: not JSON"),
        ('{"x": 1}\n', "c.jsonl", r"line 1: none of its fields is known \(fields: x\), and none"),
        ("\n \n", "c.jsonl", "c.jsonl contains no records"),
        ('[{"text": "a"}, {"text": ]', "c.json", "^c.json, line 1"),
        ("text,n\n'a',1,2\n", "c.csv", "line 2: 3 cells, but the header has 2"),
    ],
)
def test_broken_records_are_rejected_with_their_line(
    tmp_path: Path, content: str, name: str, message: str
) -> None:
    with pytest.raises(CalibrationSourceError, match=message) as caught:
        columns(tmp_path, content, name)
    assert str(tmp_path) not in caught.value.message


def test_cells_of_tables_are_text_whatever_they_hold(tmp_path: Path) -> None:
    assert columns(tmp_path, "n,m\n1,2\n", "c.csv").problem("n") is None


def test_one_bad_record_in_a_thousand_is_tolerated_as_in_a_job(tmp_path: Path) -> None:
    good = lines(*({"text": "a", "body": "b"} for _ in range(999)))
    assert columns(tmp_path, f"{good}broken\n").problem(None) is None
    read = columns(tmp_path, good + lines({"text": "a"}))
    assert (read.problem("body"), read.problem("text")) == (None, None)


def test_names_that_a_database_cannot_store_are_no_fields(tmp_path: Path) -> None:
    read = columns(tmp_path, lines({"\0": "a", "\ud800": "b", "x" * 201: "c", "body": "d"}))
    assert set(read.fields) == {"body"}
    assert read.form_problem is not None
    assert read.form_problem.isprintable()


def test_compressed_texts_are_read_and_formats_of_workers_are_left_to_them(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert read_columns(tmp_path / "c.jsonl.gz", nothing).problem(None) is None
    names = ("a.txt", "a.md.gz", "a.parquet", "a.jsonl.zst")
    assert [has_records(name) for name in names] == [False] * 4


def test_the_check_can_be_stopped(tmp_path: Path) -> None:
    class StoppedError(Exception):
        """The upload was deleted."""

    def stop() -> None:
        raise StoppedError

    stopped: Callable[[], None] = stop
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(StoppedError):
        read_columns(tmp_path / "c.jsonl", stopped)
