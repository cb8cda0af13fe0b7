"""Benchmark texts are found by short name, and a missing or wrong file is a clear error."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import json
from pathlib import Path

import pytest

from benchmarks import data

EXPECTED = data.TextFile(
    name="text.txt",
    bytes=5,
    sha256=hashlib.sha256(b"words").hexdigest(),
    contents="five letters",
    source="example.com/text.txt",
    licence="CC0",
)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(data.DIRECTORY_VARIABLE, str(tmp_path))
    monkeypatch.setattr(data, "FILES", {"text": EXPECTED})
    return tmp_path


def test_a_short_name_stands_for_the_file(directory: Path) -> None:
    (directory / "text.txt").write_bytes(b"words")
    assert data.text_source("text") == str(directory / "text.txt")


@pytest.mark.usefixtures("directory")
def test_other_sources_are_left_alone() -> None:
    assert data.text_source("pydoc") == "pydoc"
    assert data.text_source("/somewhere/corpus.txt") == "/somewhere/corpus.txt"


def test_a_missing_file_says_where_to_put_which(directory: Path) -> None:
    with pytest.raises(data.BenchmarkDataError) as error:
        data.text_source("text")
    message = str(error.value)
    assert str(directory / "text.txt") in message
    for fact in (EXPECTED.sha256, "5 bytes", EXPECTED.source, "CC0", data.DIRECTORY_VARIABLE):
        assert fact in message


def test_a_wrong_checksum_names_both(directory: Path) -> None:
    (directory / "text.txt").write_bytes(b"other")
    with pytest.raises(data.BenchmarkDataError) as error:
        data.text_source("text")
    assert EXPECTED.sha256 in str(error.value)
    assert hashlib.sha256(b"other").hexdigest() in str(error.value)


@pytest.mark.usefixtures("directory")
def test_a_command_line_reports_it_as_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--evaluation", type=data.text_source)
    with pytest.raises(SystemExit):
        parser.parse_args(["--evaluation", "text"])
    assert "text.txt is missing" in capsys.readouterr().err


def test_the_default_directory_is_ignored_by_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.DIRECTORY_VARIABLE, raising=False)
    root = Path(__file__).parents[2]
    assert data.data_directory() == root / "benchmarks" / "data"
    assert "/benchmarks/data/" in (root / ".gitignore").read_text().splitlines()


def test_all_files_are_described() -> None:
    assert set(data.FILES) == {"wikitext2-valid", "wikitext2-test"}
    for file in (*data.FILES.values(), *data.TASK_FILES.values()):
        assert len(file.sha256) == 64
        assert file.source
        assert file.licence


def test_the_text_of_piqa_has_questions_and_right_answers(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        {"context": "Question: Dry a cup.\nAnswer:", "choices": ["Wipe it. ", "x"], "label": 0},
        {"context": "Question: ice box\nAnswer:", "choices": ["x", "cools"], "label": 1},
    ]
    content = gzip.compress("".join(f"{json.dumps(item)}\n" for item in items).encode())
    (directory / "piqa.gz").write_bytes(content)
    expected = dataclasses.replace(
        EXPECTED, name="piqa.gz", sha256=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setattr(data, "TASK_FILES", {"piqa": expected})
    path = data.piqa_text(tmp_path / "derived")
    assert path.read_text() == "Dry a cup.\nWipe it.\n\nice box\ncools\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(data.BenchmarkDataError, match=r"piqa\.txt cannot be written"):
        data.piqa_text(tmp_path / "file")
