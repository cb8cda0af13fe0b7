"""The worker's handle on a child process: start, receive messages, stop."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from app.telemetry import get_logger
from workers.child_log import ChildLog
from workers.messages import ChildInput, ChildMessage, decode

COMMAND = (sys.executable, "-P", "-m", "workers.child")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_log = get_logger(__name__)


class ChildProcess:
    """One spawned interpreter; not a fork, because a fork of a threaded process may hang."""

    def __init__(self, request: ChildInput, log: Path, command: Sequence[str] = COMMAND) -> None:
        self._messages: queue.SimpleQueue[ChildMessage | None] = queue.SimpleQueue()
        # A new session is a new process group: its helper processes can be killed with it.
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(request.visible_devices),
            cwd=log.parent,
            start_new_session=True,
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise RuntimeError("the child process has no pipes")
        self._stdout = stdout
        self._log = ChildLog(stderr, log, request.telemetry.context)
        _RUNNING.add(self)
        _send_request(request, stdin)
        self._reader = threading.Thread(target=self._read, daemon=True, name="child-reader")
        self._reader.start()

    def next_message(self, seconds: float) -> ChildMessage | None:
        """Return the next message; None if none arrives in time or the child has ended."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    @property
    def ended(self) -> bool:
        """True if the process has exited and all its messages were returned."""
        return not self._reader.is_alive() and self._messages.empty() and self.exit_code is not None

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative signal number, or None while it runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def request_stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and its helpers, and release its pipes."""
        self.kill_group()
        self._process.wait()
        self._reader.join()
        self._stdout.close()
        self._log.close()
        _RUNNING.discard(self)

    def kill_group(self) -> None:
        """Kill the process group without waiting for its end."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            _log.debug("child_already_gone", pid=self._process.pid)

    @property
    def context(self) -> Mapping[str, str]:
        """Fields that every log entry of the process has."""
        return self._log.context

    def take_log(self) -> list[dict[str, Any]]:
        """Return the log entries since the last call, those of plain lines included."""
        return self._log.take()

    def last_line(self) -> str:
        """Return the end of the last plain line on stderr."""
        return self._log.last_line()

    def _read(self) -> None:
        for line in self._stdout:
            try:
                self._messages.put(decode(line))
            except ValidationError:
                # A partial line: the process was killed while writing it.
                _log.warning("child_message_unreadable", pid=self._process.pid)


_RUNNING: set[ChildProcess] = set()


def kill_all_children() -> None:
    """Kill every child process without waiting."""
    for child in _RUNNING.copy():
        child.kill_group()


def _send_request(request: ChildInput, stdin: IO[bytes]) -> None:
    try:
        with stdin:
            stdin.write(request.model_dump_json().encode())
    except BrokenPipeError:
        _log.warning("child_exited_early")


def environment(visible_devices: str | None) -> dict[str, str]:
    """Return our environment without the settings: the child needs neither database nor keys.

    `visible_devices` names the GPUs that it sees; None leaves that as it is here.
    """
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("INTRASLICE_")
    }
    # Progress bars are for terminals; the child's output goes to a log.
    variables["TQDM_DISABLE"] = "1"
    if visible_devices is not None:
        variables[_VISIBLE] = visible_devices
    return variables


def visible_device(number: int) -> str:
    """Return the name of a GPU for CUDA_VISIBLE_DEVICES, by its number among those seen here."""
    names = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return names[number] if number < len(names) else str(number)
