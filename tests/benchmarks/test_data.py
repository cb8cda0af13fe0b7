"""Benchmark texts are found by short name, and a missing or wrong file is a clear error."""

from __future__ import annotations

import argparse
import hashlib
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
    for text_file in data.FILES.values():
        assert len(text_file.sha256) == 64
        assert text_file.source
        assert text_file.licence
