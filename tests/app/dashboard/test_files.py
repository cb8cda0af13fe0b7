"""The dashboard's files: all are packaged, and other people's are as they were."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PLACE = REPOSITORY / "app" / "dashboard"


def test_what_comes_from_others_is_as_it_was_and_has_its_licence() -> None:
    table = (PLACE / "vendor" / "README.md").read_text()
    known = dict(re.findall(r"\| `([\w./-]+)` \| `[^`]+` \| `([0-9a-f]{64})` \|", table))
    vendor = PLACE / "vendor"
    code = [file for file in vendor.rglob("*") if file.suffix in (".js", ".css")]
    digests = {
        file.relative_to(vendor).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in code
    }
    assert digests == known
    for name in ("htm", "preact", "uPlot", "noble-hashes"):
        assert (PLACE / "vendor" / f"LICENSE-{name}").stat().st_size > 500


def test_everything_the_page_needs_is_packaged() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["app.dashboard"]
    packaged = {file for pattern in patterns for file in PLACE.glob(pattern)}
    needed = {
        file
        for file in PLACE.rglob("*")
        if file.suffix in (".js", ".css", ".html", ".svg") and "node_modules" not in file.parts
    }
    assert needed <= packaged


def test_nothing_is_put_into_the_page_as_markup() -> None:
    for file in PLACE.rglob("*.js"):
        if "vendor" not in file.parts and "node_modules" not in file.parts:
            text = file.read_text()
            assert "innerHTML" not in text, file.name
            assert "dangerouslySetInnerHTML" not in text, file.name
            assert "eval(" not in text, file.name
