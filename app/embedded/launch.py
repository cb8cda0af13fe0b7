"""Start one program so that it never outlives the process that started it.

Run by path in an isolated interpreter (`python -I -S launch.py …`), this script uses the standard
library only and starts in a few milliseconds. A separate program, unlike `preexec_fn`, runs no
Python code between fork and exec of a threaded process.

There are two modes:
* plain: change the user, request a signal from the kernel for the parent's death, and exec the
  program;
* `--guard SECONDS`: stay as the subreaper of everything the program starts, and kill all of it
  when the program ends, when this process receives a stop signal, or when its parent dies.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
_GRACE_AFTER_PARENT_DEATH = 2.0
_WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main() -> None:
    arguments, command = _parse(sys.argv[1:])
    if arguments.guard is not None and _LINUX:
        _die_with_parent(signal.SIGTERM, arguments.parent)
        sys.exit(_guard(command, arguments.parent, arguments.guard))
    if arguments.uid is not None:
        _become(arguments.uid, arguments.gid)
    # Only after the change of user, which clears the death signal.
    _die_with_parent(arguments.signal, arguments.parent)
    os.execv(command[0], command)


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True, help="pid that must stay alive")
    parser.add_argument(
        "--signal", type=int, default=signal.SIGTERM, help="signal sent when the parent dies"
    )
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--guard", type=float, help="seconds between SIGTERM and SIGKILL")
    split = argv.index("--")
    return parser.parse_args(argv[:split]), argv[split + 1 :]


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _prctl(option: int, value: int) -> None:
    if _LINUX and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def _die_with_parent(signal_number: int, parent: int) -> None:
    """Request `signal_number` at the parent's death; exit if the parent is already dead."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        sys.exit(1)


def _guard(command: list[str], parent: int, grace: float) -> int:
    """Run `command`, kill all remaining descendants, and return the exit status."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    own = os.getpid()
    program = os.fork()
    if program == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        _die_with_parent(signal.SIGKILL, own)
        os.execv(command[0], command)
    status = _wait_or_stop(program, parent, grace)
    _kill_descendants(own)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _wait_or_stop(program: int, parent: int, grace: float) -> int:
    """Wait for the program and return its status; kill it `grace` seconds after a SIGTERM."""
    deadline: float | None = None
    while True:
        timeout = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        caught = signal.sigtimedwait(_WATCHED, timeout)
        if caught is not None and caught.si_signo != signal.SIGCHLD and deadline is None:
            orphaned = os.getppid() != parent
            deadline = time.monotonic() + (_GRACE_AFTER_PARENT_DEATH if orphaned else grace)
            _send(program, signal.SIGTERM)
        elif caught is None and deadline is not None:
            _send(program, signal.SIGKILL)
        status = _reap(program)
        if status is not None:
            return status


def _reap(program: int) -> int | None:
    """Reap dead children until none is left or the program is among them; return its status."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        if pid == program:
            return status


def _kill_descendants(own: int) -> None:
    """Kill children until none is left; orphaned grandchildren become children of this process."""
    while True:
        for child in _children(own):
            _send(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children(own: int) -> list[int]:
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # Format: "pid (name) state ppid …"; the name may contain spaces and brackets.
                after_name = (entry / "stat").read_text(errors="replace").rpartition(")")[2]
                if int(after_name.split()[1]) == own:
                    children.append(int(entry.name))
    return children


def _send(pid: int, signal_number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal_number)


if __name__ == "__main__":
    main()
