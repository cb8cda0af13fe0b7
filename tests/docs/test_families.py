"""The lists of model families in README.md and docs/inputs.md are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice_core.families import FAMILIES
from tools.families import PAGES, with_families


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_lists_the_families_of_the_code(page: Path) -> None:
    text = page.read_text("utf-8")
    assert with_families(page) == text, "run python tools/families.py"
    assert all(family.title in text.replace("\n", " ") for family in FAMILIES.values())
