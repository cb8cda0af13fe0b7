"""The page is written from an existing report and overwrites no file without --force."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from intraslice_core.reports.schema import REPORT_FILE
from tests.intraslice_core.reports.samples import report


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "small"
    place.mkdir()
    (place / REPORT_FILE).write_text(report().model_dump_json())
    return place


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.parametrize("name", ["", REPORT_FILE])
def test_a_directory_or_its_report_becomes_a_page(directory: Path, name: str) -> None:
    out = directory.parent / "pages" / "a.html"
    assert run(directory / name, "--out", out) == (0, f"wrote {out}\n")
    assert out.read_text("utf-8").startswith("<!doctype html>")
    assert [file.name for file in out.parent.iterdir()] == ["a.html"]


def test_a_file_is_replaced_only_with_force(directory: Path) -> None:
    out = directory.parent / "a.html"
    out.write_text("mine")
    code, output = run(directory, "--out", out)
    assert code == 2
    assert "--force" in output
    assert out.read_text() == "mine"
    assert run(directory, "--out", out, "--force")[0] == 0
    assert out.read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_a_file_that_is_no_report_is_rejected(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / REPORT_FILE).write_text(content)
    code, output = run(tmp_path, "--out", tmp_path / "a.html")
    assert code == 2
    assert "SOURCE" in output
    assert not (tmp_path / "a.html").exists()
