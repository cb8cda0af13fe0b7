"""Short run of `benchmarks/faults.py`: kill -9 of every process loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.app.embedded.processes import REPOSITORY

pytestmark = [pytest.mark.postgres, pytest.mark.broker, pytest.mark.slow]


def test_jobs_survive_kill_9_of_every_process() -> None:
    finished = subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--rounds", "2", "--seed", "1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    summary = json.loads(finished.stdout.splitlines()[-1])
    assert summary.pop("recovery_p95_s") > 0
    assert summary == {
        "rounds": 2,
        "submitted": 2,
        "lost": 0,
        "published_twice": 0,
        "bytes_differ": 0,
    }, finished.stdout
