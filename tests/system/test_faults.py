"""Short run of `benchmarks/faults.py`: kills, a pause and maintenance lose nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.app.embedded.processes import REPOSITORY

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.broker,
    pytest.mark.object_store,
    pytest.mark.slow,
]

SEED = 122567
"""Seed that kills each of `KILLED` once, the S3 server and the second worker while a job publishes
its files, pauses the first job before that, and draws one ratio only."""
KILLED = {"nginx", "second worker", "scheduler", "SeaweedFS"}


def test_jobs_survive_kill_9_pauses_and_maintenance() -> None:
    finished = subprocess.run(
        [
            *(sys.executable, "benchmarks/faults.py"),
            *("--rounds", "2", "--kinds", "pause,maintenance", "--seed", str(SEED)),
            *("--patience", "240"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    summary = json.loads(finished.stdout.splitlines()[-1])
    faults = ("lost", "published_twice", "bytes_differ", "missing_objects", "maintenance_crashes")
    assert {name: summary[name] for name in faults} == dict.fromkeys(faults, 0), finished.stdout
    assert summary["rounds"] == summary["submitted"] == 2
    assert summary["pauses"] == 1
    assert summary["maintenance_passes"] >= 1
    if "nginx" in summary["kills"]:  # without it other processes are drawn
        assert {name for name, times in summary["kills"].items() if times} == KILLED
