"""State files of this machine's service processes, which `intraslice healthcheck` reads.

Each process has one file in `data_dir/processes`. Its name contains the host, because containers
that share a volume have equal process ids. Heartbeats are times of the monotonic clock, which all
processes of a machine share and nobody can set.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_DIRECTORY = "processes"
# Not structlog, whose import would take most of the time of a health check.
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """State of one process as of its last heartbeat."""

    command: str
    """Subcommand of `intraslice`, such as `worker`."""
    pid: int
    heartbeat: float
    """Time of the monotonic clock (seconds)."""
    url: str = ""
    """Base URL at which the API answers on this machine."""

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat; infinite if it was before the last boot."""
        age = time.monotonic() - self.heartbeat
        return age if age >= 0 else float("inf")

    @property
    def is_running(self) -> bool:
        """Existence of a process with this id."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class StateFile:
    """State file of this process. Failures to write are logged once and otherwise ignored.

    Args:
        data_dir: data directory of the service.
        command: subcommand that this process runs.
    """

    def __init__(self, data_dir: Path, command: str) -> None:
        self._command = command
        self._path = data_dir / _DIRECTORY / f"{_host_prefix()}{os.getpid()}.json"
        self._writable = True

    def write(self, url: str = "") -> None:
        """Record a heartbeat."""
        state = ProcessState(
            command=self._command, pid=os.getpid(), heartbeat=time.monotonic(), url=url
        )
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_text(json.dumps(asdict(state)))
            fresh.replace(self._path)
        except OSError as error:
            if self._writable:
                _log.warning("health checks fail: cannot write %s: %s", self._path, error.strerror)
            self._writable = False
        else:
            self._writable = True

    def remove(self) -> None:
        """Remove the file at the end of the process."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def state_file(data_dir: Path, command: str) -> Iterator[StateFile]:
    """Yield this process's state file, and remove it when the context ends.

    Files that killed processes of the same command have left are removed first.
    """
    for path, state in _read(data_dir):
        if state.command == command and not state.is_running:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    file = StateFile(data_dir, command)
    try:
        yield file
    finally:
        file.remove()


def process_states(data_dir: Path) -> list[ProcessState]:
    """Return the states of this host's processes with the given data directory."""
    return [state for _, state in _read(data_dir)]


def _read(data_dir: Path) -> list[tuple[Path, ProcessState]]:
    directory = data_dir / _DIRECTORY
    states = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.name.startswith(_host_prefix()) and path.suffix == ".json":
            # A process may end, or a full disk may have left half a file.
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
                states.append((path, ProcessState(**json.loads(path.read_text()))))
    return states


def _host_prefix() -> str:
    return f"{socket.gethostname()}-"
