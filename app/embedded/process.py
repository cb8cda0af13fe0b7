"""A child process that ends when this process ends: started by `launch.py`, logged to a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launch.py")
_LOG_LIMIT = 10 * 1024 * 1024
_KILL_SECONDS = 5.0
"""Longest wait for a process to disappear after SIGKILL."""


class EmbeddedError(Exception):
    """Base class of the errors of embedded servers and processes."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """User and group of a server that must not run as this process's user."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Command:
    """A program to start, and how to stop it."""

    name: str
    arguments: Sequence[str]
    log: Path
    cwd: Path
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    """Time between the stop signal and SIGKILL."""
    owner: Owner | None = None
    environment: Mapping[str, str] | None = None
    guarded: bool = False
    """End all descendants of the program when it ends."""
    inherited: tuple[int, ...] = ()
    """File descriptors the program inherits, such as the lock of its directory."""

    def launcher_arguments(self) -> list[str]:
        """Return the command line that starts the program through `launch.py`."""
        head = [sys.executable, "-I", "-S", str(_LAUNCHER), "--parent", str(os.getpid())]
        head += ["--signal", str(int(self.stop_signal))]
        if self.owner is not None:
            head += ["--uid", str(self.owner.uid), "--gid", str(self.owner.gid)]
        if self.guarded:
            head += ["--guard", str(self.stop_seconds)]
        return [*head, "--", *self.arguments]


class ManagedProcess:
    """A running `Command`.

    The kernel's death signal follows the *thread* that started the child. Start it from the main
    thread, which lives as long as the process.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        _rotate(command.log)
        self._log_start = command.log.stat().st_size if command.log.exists() else 0
        with command.log.open("ab") as log:
            # In a new session, Ctrl-C reaches only this process, which stops members in order.
            self._process = subprocess.Popen(
                command.launcher_arguments(),
                cwd=command.cwd,
                env=dict(command.environment) if command.environment is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=command.inherited,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait up to `seconds` and return the exit code, or None if the process still runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def request_stop(self) -> None:
        """Send the stop signal without waiting."""
        if self.exit_code() is None:
            self._process.send_signal(
                signal.SIGTERM if self.command.guarded else self.command.stop_signal
            )

    def stop(self) -> None:
        """Send the stop signal, wait, and kill the process if it is still running.

        Raises:
            EmbeddedError: if the process survives SIGKILL.
        """
        self.request_stop()
        # A guard needs a little longer than the time it gives its program.
        patience = self.command.stop_seconds + (2.0 if self.command.guarded else 0.0)
        if self.wait(patience) is None:
            self._process.kill()
            if self.wait(_KILL_SECONDS) is None:
                raise EmbeddedError(
                    f"{self.command.name} (pid {self.pid}) is still running after SIGKILL"
                )

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines that this run of the program wrote."""
        with self.command.log.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_name(log.name + ".old"))
