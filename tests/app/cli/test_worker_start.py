"""Settings that a worker cannot use stop it at its start, with the name of the variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def start(place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a worker without servers; it must fail before it connects to them."""
    variables = {"INTRASLICE_DATA_DIR": str(place), **environment}
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", "worker"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("content", [None, "no key at all"])
def test_a_missing_or_invalid_signing_key(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_text(content)
    ended = start(tmp_path, INTRASLICE_ARTIFACT_SIGNING_KEY_FILE=str(file))
    assert ended.returncode == 2
    assert "INTRASLICE_ARTIFACT_SIGNING_KEY_FILE" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_invalid_name_for_hand_offs(tmp_path: Path) -> None:
    ended = start(tmp_path, INTRASLICE_HANDOFF_NAME="{secret}")
    assert ended.returncode == 2
    assert "INTRASLICE_HANDOFF_NAME" in ended.stderr


def test_rejected_keys_are_not_printed(tmp_path: Path) -> None:
    keys = ("API_KEY", "API_KEY_PREVIOUS", "SIGNING_KEY", "SIGNING_KEY_PREVIOUS")
    names = [f"INTRASLICE_{key}" for key in keys]
    ended = start(tmp_path, **dict.fromkeys(names, "s3cr3t"))
    assert ended.returncode != 0
    assert all(f"{name}: " in ended.stderr for name in names)
    assert "s3cr3t" not in ended.stderr + ended.stdout
