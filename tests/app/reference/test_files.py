"""Files of the API reference: packaged, vendored ones unchanged and licensed."""

from __future__ import annotations

import gzip
import hashlib
import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PLACE = REPOSITORY / "app" / "reference"
VENDOR = PLACE / "vendor"


def content(file: Path) -> bytes:
    """The file as its package has it: large ones are stored compressed."""
    stored = file.read_bytes()
    return gzip.decompress(stored) if file.suffix == ".gz" else stored


def test_vendored_files_are_unchanged_and_licensed() -> None:
    table = (VENDOR / "README.md").read_text()
    expected = dict(re.findall(r"\| `([\w./-]+)` \| `[^`]+` \| `([0-9a-f]{64})` \|", table))
    digests = {
        file.name.removesuffix(".gz"): hashlib.sha256(content(file)).hexdigest()
        for file in VENDOR.iterdir()
        if file.name.removesuffix(".gz").endswith((".js", ".css"))
    }
    assert digests == expected
    assert "Apache License" in (VENDOR / "LICENSE-swagger-ui").read_text()
    assert (VENDOR / "NOTICE-swagger-ui").read_text().startswith("swagger-ui")


def test_every_file_of_the_page_is_packaged() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["app.reference"]
    packaged = {file for pattern in patterns for file in PLACE.glob(pattern)}
    needed = {file for file in PLACE.rglob("*") if file.is_file() and file.suffix != ".py"}
    assert {file for file in needed if "__pycache__" not in file.parts} <= packaged


def test_the_key_of_the_session_is_that_of_the_dashboard() -> None:
    stored = {
        name: re.search(r'STORED = "([^"]+)"', (PLACE.parent / name).read_text())
        for name in ("dashboard/api.js", "reference/reference.js")
    }
    assert len({match and match[1] for match in stored.values()}) == 1, stored
