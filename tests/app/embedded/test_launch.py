"""Started programs end with their starter."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import psutil

from app.embedded.process import Command, ManagedProcess
from tests.app.embedded.processes import descendants, kill, run_script, wait_until_dead

# A program whose child has left its session, as a job's child process may.
FAMILY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
"""
ALONE = """
import time
print("ready", flush=True)
time.sleep(300)
"""
IGNORES_STOP = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(300)
"""
STARTER = """
import sys, time
from pathlib import Path
from app.embedded.process import Command, ManagedProcess
source, directory, guarded = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "guarded"
command = Command(
    name="family", arguments=[sys.executable, "-c", source, "300"], log=directory / "log",
    cwd=directory, guarded=guarded,
)
process = ManagedProcess(command)
while "ready" not in process.log_tail():
    time.sleep(0.02)
print("started", flush=True)
time.sleep(300)
"""


def start(tmp_path: Path, source: str, *arguments: str, guarded: bool) -> ManagedProcess:
    process = ManagedProcess(
        Command(
            name="program",
            arguments=[sys.executable, "-c", source, *arguments],
            log=tmp_path / "log",
            cwd=tmp_path,
            stop_seconds=0.5,
            guarded=guarded,
        )
    )
    deadline = time.monotonic() + 20
    while "ready" not in process.log_tail() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_all_descendants_of_a_guarded_program_end_with_it(tmp_path: Path) -> None:
    process = start(tmp_path, FAMILY, "0.3", guarded=True)
    family = descendants(process.pid)
    assert len(family) == 2
    assert process.wait(20) == 0
    assert wait_until_dead(family, 5) == []


def test_a_guard_returns_the_exit_status_of_its_program(tmp_path: Path) -> None:
    failed = start(tmp_path, "print('ready', flush=True); raise SystemExit(7)", guarded=True)
    assert failed.wait(20) == 7
    killed = start(
        tmp_path,
        "import os; print('ready', flush=True); os.kill(os.getpid(), 9)",
        guarded=True,
    )
    assert killed.wait(20) == 128 + signal.SIGKILL


def test_stopping_a_guarded_program_ends_descendants_that_ignore_signals(tmp_path: Path) -> None:
    for name, source in (("family", FAMILY), ("ignores-stop", IGNORES_STOP)):
        directory = tmp_path / name
        directory.mkdir()
        process = start(directory, source, "300", guarded=True)
        family = descendants(process.pid)
        process.stop()
        assert wait_until_dead(family, 2) == []


def test_a_guarded_program_and_its_descendants_end_when_the_starter_is_killed(
    tmp_path: Path,
) -> None:
    starter = run_script(STARTER, FAMILY, str(tmp_path), "guarded")
    assert starter.stdout is not None
    assert starter.stdout.readline() == "started\n"
    family = descendants(starter.pid)
    assert len(family) == 3
    kill(starter)
    assert wait_until_dead(family, 5) == []


def test_a_guarded_program_and_its_descendants_end_when_the_guard_is_killed_first(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, IGNORES_STOP, guarded=True)
    family = descendants(process.pid)
    psutil.Process(process.pid).kill()
    assert process.wait(5) == -signal.SIGKILL
    assert wait_until_dead(family, 5) == []


def test_an_unguarded_program_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    starter = run_script(STARTER, ALONE, str(tmp_path), "unguarded")
    assert starter.stdout is not None
    assert starter.stdout.readline() == "started\n"
    programs = descendants(starter.pid)
    assert len(programs) == 1
    kill(starter)
    assert wait_until_dead(programs, 5) == []


def test_a_program_that_ignores_the_stop_signal_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, IGNORES_STOP, guarded=False)
    process.stop()
    assert process.exit_code() == -signal.SIGKILL


def test_the_log_tail_contains_only_this_run(tmp_path: Path) -> None:
    start(tmp_path, "print('ready first', flush=True)", guarded=False).wait(20)
    second = start(tmp_path, "print('ready second', flush=True)", guarded=False)
    second.wait(20)
    assert second.log_tail() == "ready second"
    assert (tmp_path / "log").read_text() == "ready first\nready second\n"
