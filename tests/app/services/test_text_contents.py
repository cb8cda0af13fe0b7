"""Records and fields of uploaded texts, checked before a job names them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.upload import TextColumns
from app.services import text_contents
from app.services.text_contents import checked_bytes, has_records, read_columns
from intraslice_core.errors import CalibrationSourceError


def nothing() -> None:
    """No-op callback."""


def columns(place: Path, content: str, name: str = "corpus.jsonl") -> TextColumns:
    file = place / name
    file.write_bytes(content.encode())
    read = read_columns(file, nothing)
    assert read is not None
    return read


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
    read = read_columns(tmp_path / "c.jsonl.gz", nothing)
    assert read is not None
    assert read.problem(None) is None
    names = ("a.txt", "a.md.gz", "a.parquet", "a.jsonl.zst")
    assert [has_records(name) for name in names] == [False] * 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", '{"text": "a"}\n' * 10_000 + "broken\n" * 100),
        ("c.json", "[" + '{"text": "a"}, ' * 10_000 + "broken"),
        ("c.csv", "text,n\n" + "word,1\n" * 20_000 + "'a',1,2\n" * 100),
    ],
)
def test_only_the_beginning_of_a_large_text_is_kept_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    monkeypatch.setattr(text_contents, "MOST_BYTES", 2**17)
    assert checked_bytes(name, len(content)) == 2**17
    assert checked_bytes(name, 10) == 10
    assert checked_bytes("c.txt", 10) == 0
    assert columns(tmp_path, content, name).problem(None) is None
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert read_columns(tmp_path / f"{name}.gz", nothing) is not None


def test_a_few_bad_records_at_the_beginning_of_a_large_text_are_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next records may show that they are rare."""
    content = lines({"text": "a"}, {"body": "b"}) + "broken\n"
    with pytest.raises(CalibrationSourceError, match="line 3: not JSON"):
        columns(tmp_path, content)
    monkeypatch.setattr(text_contents, "MOST_BYTES", len(content) + 5)
    assert columns(tmp_path, content + lines({"text": "c" * 20})).problem(None) is None
    strange = columns(tmp_path, lines({"body": "b"}, {"body": "c" * 100}))
    assert strange.problem(None) is not None


@pytest.mark.parametrize("compress", [False, True])
def test_a_text_whose_first_record_is_longer_is_left_to_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, compress: bool
) -> None:
    monkeypatch.setattr(text_contents, "MOST_BYTES", 100)
    content = lines({"text": "a" * 200}).encode()
    file = tmp_path / ("c.jsonl.gz" if compress else "c.jsonl")
    file.write_bytes(gzip.compress(content) if compress else content)
    assert read_columns(file, nothing) is None


def test_the_check_can_be_stopped(tmp_path: Path) -> None:
    class StoppedError(Exception):
        """The upload was deleted."""

    def stop() -> None:
        raise StoppedError

    stopped: Callable[[], None] = stop
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(StoppedError):
        read_columns(tmp_path / "c.jsonl", stopped)
