"""Looks at processes from outside, for tests about who outlives whom."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[3]


def run_script(source: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that can import the project and talks on stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def descendants(pid: int) -> set[psutil.Process]:
    return set(psutil.Process(pid).children(recursive=True))


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until_dead(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those still alive after `seconds`."""
    deadline = time.monotonic() + seconds
    left = alive(processes)
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = alive(left)
    return left


def kill(process: subprocess.Popen[str]) -> None:
    """As the kernel does when memory runs out."""
    process.kill()
    process.wait(10)
    if process.stdout is not None:
        process.stdout.close()
