"""A child process that dies with us: started through `launch.py`, logged to a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.embedded.errors import EmbeddedError

_LAUNCHER = Path(__file__).with_name("launch.py")
_LOG_LIMIT = 10 * 1024 * 1024
_LAST_RESORT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The user a server runs as, where it must not be ours."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start and how it must end."""

    name: str
    arguments: Sequence[str]
    log: Path
    cwd: Path
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    """From the stop signal to SIGKILL."""
    owner: Owner | None = None
    environment: Mapping[str, str] | None = None
    guarded: bool = False
    """End its whole family with it, grandchildren included."""
    inherited: tuple[int, ...] = ()
    """File descriptors it keeps open, such as the lock of its directory."""

    def launcher_arguments(self) -> list[str]:
        head = [sys.executable, "-I", "-S", str(_LAUNCHER), "--parent", str(os.getpid())]
        head += ["--signal", str(int(self.stop_signal))]
        if self.owner is not None:
            head += ["--uid", str(self.owner.uid), "--gid", str(self.owner.gid)]
        if self.guarded:
            head += ["--guard", str(self.stop_seconds)]
        return [*head, "--", *self.arguments]


class ManagedProcess:
    """A running `Command`.

    The kernel's death signal follows the *thread* that started the child, so start it from a
    thread that lives as long as the process: the main one.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        _rotate(command.log)
        self._log_start = command.log.stat().st_size if command.log.exists() else 0
        with command.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches only us, and we stop members in order.
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
        """The exit code, or None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def request_stop(self) -> None:
        if self.exit_code() is None:
            self._process.send_signal(
                signal.SIGTERM if self.command.guarded else self.command.stop_signal
            )

    def stop(self) -> None:
        """Ask it to end, insist, and collect it."""
        self.request_stop()
        # A guard needs a moment more than the grace it gives its program.
        patience = self.command.stop_seconds + (2.0 if self.command.guarded else 0.0)
        if self.wait(patience) is None:
            self._process.kill()
            if self.wait(_LAST_RESORT_SECONDS) is None:
                raise EmbeddedError(f"{self.command.name} (pid {self.pid}) does not end")

    def log_tail(self, lines: int = 15) -> str:
        """The last lines it has written since it was started."""
        with self.command.log.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_name(log.name + ".old"))
