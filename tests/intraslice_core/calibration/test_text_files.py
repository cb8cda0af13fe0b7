"""Formats of text files, and files that are broken."""

from __future__ import annotations

import csv
import gzip
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from intraslice_core.calibration import json_text
from intraslice_core.calibration.json_text import json_lines, json_values
from intraslice_core.calibration.text_files import read_records
from intraslice_core.errors import CalibrationSourceError, IntraSliceError
from tests.intraslice_core.calibration.reading import load_documents

RECORDS = [{"text": 'Größe,\n"1"; 2\u2028'}, {"text": "two"}, {"text": " "}, {"text": "😀"}]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98304\n"
DOCUMENTS = [record["text"] for record in RECORDS if record["text"].strip()]


def encoded(form: str, records: list[dict[str, Any]] = RECORDS) -> bytes:
    """Return the records in a text format."""
    if form == "csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, fieldnames=["id", *records[0]])
        writer.writeheader()
        writer.writerows([{"id": 1, **record} for record in records])
        return stream.getvalue().encode()
    if form == "jsonl":
        return "".join(json.dumps(record) + "\n" for record in records).encode()
    return json.dumps(records, ensure_ascii=False, indent=1).encode()


def packed(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return pyarrow.compress(content, "zstd", asbytes=True) if suffix == ".zst" else content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "CSV"])
def test_records_of_every_format(tmp_path, form, suffix):
    path = tmp_path / f"a.{form}{suffix}"
    path.write_bytes(packed(encoded(form.lower()), suffix.lower()))
    assert load_documents(path) == DOCUMENTS


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", ["txt", "md", "TXT"])
def test_texts_of_every_format(tmp_path, form, suffix):
    path = tmp_path / f"a.{form}{suffix}"
    path.write_bytes(packed("\ufeffGröße\r\n\r\nzwei\r\n".encode(), suffix))
    assert load_documents(path) == ["Größe\n\nzwei\n"]


def test_parquet(tmp_path):
    path = tmp_path / "a.Parquet"
    parquet.write_table(
        pyarrow.Table.from_pylist([{"id": 1, **record} for record in RECORDS]), path
    )
    assert load_documents(path) == DOCUMENTS
    chats = [{"messages": [{"role": "user", "content": str(number)}]} for number in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist(chats), path)
    assert load_documents(path) == [f"user: {number}" for number in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist([{"body": "a"}]), path)
    assert load_documents(path, text_field="body") == ["a"]
    with pytest.raises(CalibrationSourceError, match=r"row 1: none of its fields.*body"):
        load_documents(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiters(tmp_path, delimiter):
    (tmp_path / "a.csv").write_text(f"id{delimiter}text\n1{delimiter}a\n\n2{delimiter}b c\n")
    assert load_documents(tmp_path / "a.csv") == ["a", "b c"]


def test_json_files_with_other_contents(tmp_path):
    path = tmp_path / "a.json"
    for content in (b'{"text": "a"}\n{"text":\n"b"}', b'["a", "b"]', b' [{"text":"a"} , "b"]\n'):
        path.write_bytes(content)
        assert load_documents(path) == ["a", "b"]
    array = tmp_path / "a.jsonl"
    array.write_bytes(encoded("json"))
    assert load_documents(array) == DOCUMENTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a\nb\xe9\n".encode("latin-1"), "line 2: not UTF-8 text: invalid byte 0xe9"),
        ("a.txt", "a".encode("utf-16"), "line 1: not UTF-8.*iconv -f UTF-16"),
        ("a.txt.zst", packed(b"x" * 9999, ".zst")[:-9], "cannot be read: .*runcated"),
        ("a.txt.zst", b"not zstd", "cannot be read"),
        ("a.jsonl", b'{"text": "\\ud83d"}', r"line 1: not Unicode text: lone surrogate"),
        ("a.jsonl", b'{"text": ' + b"[" * 9000 + b"]" * 9000 + b"}", "line 1: .*too deeply"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1: not UTF-8 text: invalid byte 0xff"),
        ("a.jsonl", b'{"text": "a\0"}', "line 1: not text: it contains a NUL"),
        ("a.jsonl", b'{"text": "\\u0000"}', "line 1: not text: it contains a NUL"),
        ("a.json", b"[" * 9000, "line 1: its values are nested too deeply"),
        ("a.json", b'[{"text": "a"},\n{"text": "b"}', "line 2: the array does not end"),
        ("a.json", b'[{"text": "a"},\n{"text" "b"}]', "line 2: Expecting ':' delimiter"),
        ("a.json", b'{"data": [{"text": "a"}]}', "fields: data"),
        ("a.csv", b"text,id\na,1,2\n", "line 2: 3 cells, but the header has 2"),
        ("a.csv", b'id,text\n1,"a', "line 2: unexpected end of data"),
        ("a.csv", b"id,body\n1,a\n", "line 2: none of its fields is known .fields: id, body"),
        ("a.csv", b"id,text\n", "contains no text"),
        ("a.csv", b"", "contains no text"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.parquet", LFS, "a.parquet is a git-lfs pointer"),
        ("a.txt", LFS, "a.txt is a git-lfs pointer"),
        ("a.jsonl.gz", LFS, "a.jsonl.gz is a git-lfs pointer"),
        ("a.parquet", b"", "cannot be read"),
    ],
)
def test_broken_files_are_described_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationSourceError, match=message) as caught:
        load_documents(tmp_path / name)
    assert caught.value.field == "calibration.source"


def test_directory_is_not_a_text(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(CalibrationSourceError, match="is a directory"):
        load_documents(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "record",
    [
        {"text": 'ab\n"c\\' * 40},
        {"text": "😀é\n" * 40},
        {"id": [1, {"a": "b"}], "messages": [{"role": "user", "content": "abc " * 30}] * 3},
    ],
)
def test_beginning_of_a_long_record_is_read(monkeypatch, record):
    text = json.dumps(record)
    lengths = set()
    for limit in range(60, len(text)):
        monkeypatch.setattr(json_text, "MAX_RECORD_CHARACTERS", limit)
        stream = io.StringIO(f'{text}\n{{"text": "next"}}\n')
        first, last = json_lines(stream)
        assert not first.problem
        assert last.content == {"text": "next"}
        if "text" in record:
            assert record["text"].startswith(first.content["text"])
            assert limit - len(json.dumps(first.content)) < 14
        else:
            assert first.content["id"] == record["id"]
        lengths.add(len(json.dumps(first.content)))
    assert len(lengths) > 5


def test_long_record_ends_the_reading_of_an_array(monkeypatch):
    monkeypatch.setattr(json_text, "MAX_RECORD_CHARACTERS", 50)
    values = json_values(io.StringIO(json.dumps(["a", "b" * 99, "c"])), path="a.json")
    assert next(values).content == "a"
    assert next(values).content == "b" * 49
    with pytest.raises(CalibrationSourceError, match=r"longer than 50 characters.*jsonl"):
        next(values)


FIELDS = (
    *("text", "content", "messages", "conversations", "prompt", "completion", "question"),
    *("answer", "role", "from", "value", "tool_calls", "function", "arguments", "tools", "x"),
)
STRINGS = st.text(st.sampled_from('a \n"\\{[,\0\ud83d\ude00é'), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | STRINGS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())),
    start=st.sampled_from((b"", b"[", b"\xef\xbb\xbf", b"text,id\n")),
)
def test_any_bytes_give_text_or_a_typed_error(tmp_path: Path, form: str, lines, start) -> None:
    path = tmp_path / f"fuzz.{form}"
    path.write_bytes(start + b"\n".join(lines))
    with suppress(IntraSliceError):
        assert all(document.encode() for document in load_documents(path))


def test_records_are_read_only_as_far_as_they_are_taken(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\nbroken\n')
    assert next(read_records(path, None)).content == {"text": "a"}
