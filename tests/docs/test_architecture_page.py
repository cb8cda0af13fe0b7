"""The architecture's page names every law that import-linter checks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_every_contract_and_no_other() -> None:
    page = (ROOT / "docs" / "design" / "architecture.md").read_text("utf-8")
    laws = page.partition("## Laws")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in laws.splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    assert named == {contract["id"] for contract in contracts}
