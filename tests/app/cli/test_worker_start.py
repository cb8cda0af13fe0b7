"""What a worker cannot work with stops it at its start, by the variable's name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def start(place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Of a worker whose servers are not there: it must not get as far as to ask for them."""
    variables = {"INTRASLICE_DATA_DIR": str(place), **environment}
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", "worker"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("content", [None, "no key at all"])
def test_a_signing_key_that_is_missing_or_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_text(content)
    ended = start(tmp_path, INTRASLICE_ARTIFACT_SIGNING_KEY_FILE=str(file))
    assert ended.returncode == 2
    assert "INTRASLICE_ARTIFACT_SIGNING_KEY_FILE" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_name_of_hand_offs_that_cannot_be_made(tmp_path: Path) -> None:
    ended = start(tmp_path, INTRASLICE_HANDOFF_NAME="{secret}")
    assert ended.returncode == 2
    assert "INTRASLICE_HANDOFF_NAME" in ended.stderr
