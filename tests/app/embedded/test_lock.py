"""A directory has one running user at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.embedded.lock import DirectoryInUseError, DirectoryLock


def test_a_second_holder_is_rejected_with_the_pid_of_the_first(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    first.acquire()
    with pytest.raises(DirectoryInUseError, match=rf"in use by .* \(pid {os.getpid()}\)"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_waiting_holder_gets_the_lock_when_it_is_released(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    # The child inherits the lock and holds it for a moment after this process has released it.
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(0.5)"], pass_fds=(lock.descriptor,)
    )
    lock.release()
    with pytest.raises(DirectoryInUseError):
        DirectoryLock(tmp_path).acquire()
    began = time.monotonic()
    lock.acquire(patience=10)
    assert time.monotonic() - began < 5
    lock.release()
    child.wait(10)


def test_releasing_twice_is_harmless(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    lock.release()
    lock.release()
    with pytest.raises(RuntimeError, match="not held"):
        _ = lock.descriptor
