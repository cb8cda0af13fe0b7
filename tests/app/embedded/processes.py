"""Process inspection for tests of process lifetimes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[3]


def run_script(source: str, *arguments: str) -> subprocess.Popen[str]:
    """Start Python code that can import the project; its stdout is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def descendants(pid: int) -> set[psutil.Process]:
    return set(psutil.Process(pid).children(recursive=True))


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    running = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
        except psutil.NoSuchProcess:
            continue
    return running


def wait_until_dead(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return the processes still alive after `seconds`."""
    deadline = time.monotonic() + seconds
    remaining = alive(processes)
    while remaining and time.monotonic() < deadline:
        time.sleep(0.05)
        remaining = alive(remaining)
    return remaining


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the process without warning, as the kernel does when memory runs out."""
    process.kill()
    process.wait(10)
    if process.stdout is not None:
        process.stdout.close()
