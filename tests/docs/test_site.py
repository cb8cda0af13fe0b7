"""The documentation's site builds without warnings and loads nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 16
    for page in pages:
        loaded = re.findall(
            r'<(?:script|link|img)\b[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text()
        )
        assert [url for url in loaded if "canonical" not in url] == [], page.name
    api = (site / "api" / "index.html").read_text()
    assert "/v1/jobs:validate" in api
    engine = (site / "engine" / "index.html").read_text()
    assert "compress_model" in engine
    assert "Raises" in engine
