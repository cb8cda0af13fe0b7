"""The tests with pretended devices pass in a process of their own.

A process must know of a pretended device before its first backward pass. To see single results:

    python -m pytest tests/on_cuda tests/pretend_cuda
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend_cuda.apart import DIRECTORIES

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
FILES = sorted(
    file.relative_to(REPOSITORY).as_posix()
    for directory in DIRECTORIES
    for file in directory.glob("test_*.py")
)
PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
    f"--confcutdir={DIRECTORIES[0]}",
)
"""Without `tests/conftest.py`: these tests use nothing of it, and its imports take seconds."""
_SECONDS = 240
"""Longest duration on two busy cores."""


def test_the_files_pass_in_a_process_of_their_own() -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    done = subprocess.run(
        [*PYTEST, *FILES],
        cwd=REPOSITORY,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def test_other_sessions_do_not_collect_them() -> None:
    places = ["tests/on_cuda", "tests/pretend_cuda", "tests/architecture/test_laws.py"]
    done = subprocess.run(
        [*PYTEST, "--collect-only", *places],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_laws.py" in done.stdout
    assert "on_cuda" not in done.stdout
    assert "test_pretend_cuda.py" not in done.stdout
