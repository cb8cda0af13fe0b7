"""Files of the dashboard: packaged, and vendored ones unchanged."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PLACE = REPOSITORY / "app" / "dashboard"


def test_vendored_files_are_unchanged_and_licensed() -> None:
    table = (PLACE / "vendor" / "README.md").read_text()
    expected = dict(re.findall(r"\| `([\w./-]+)` \| `[^`]+` \| `([0-9a-f]{64})` \|", table))
    vendor = PLACE / "vendor"
    code = [file for file in vendor.rglob("*") if file.suffix in (".js", ".css")]
    digests = {
        file.relative_to(vendor).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in code
    }
    assert digests == expected
    for name in ("htm", "preact", "uPlot", "noble-hashes"):
        assert (PLACE / "vendor" / f"LICENSE-{name}").stat().st_size > 500


def test_every_file_of_the_page_is_packaged() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["app.dashboard"]
    packaged = {file for pattern in patterns for file in PLACE.glob(pattern)}
    needed = {
        file
        for file in PLACE.rglob("*")
        if file.suffix in (".js", ".css", ".html", ".svg") and "node_modules" not in file.parts
    }
    assert needed <= packaged


def test_no_module_inserts_markup() -> None:
    for file in PLACE.rglob("*.js"):
        if "vendor" not in file.parts and "node_modules" not in file.parts:
            text = file.read_text()
            assert "innerHTML" not in text, file.name
            assert "dangerouslySetInnerHTML" not in text, file.name
            assert "eval(" not in text, file.name
