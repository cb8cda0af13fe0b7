"""The table of job errors that are tried again is complete."""

from __future__ import annotations

import re
from pathlib import Path

from workers.failures import RETRYABLE

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


def test_the_table_has_every_code_that_is_tried_again() -> None:
    _, _, table = PAGE.read_text("utf-8").partition("| code | reason |")
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    codes = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert codes == RETRYABLE
