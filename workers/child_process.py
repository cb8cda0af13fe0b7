"""The parent's handle on a child: start, listen, stop, bury."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from app.telemetry import get_logger
from workers.child_log import ChildLog
from workers.messages import ChildMessage, ChildRequest, decode

COMMAND = (sys.executable, "-P", "-m", "workers.child")
_log = get_logger(__name__)


class ChildProcess:
    """One spawned interpreter; never forked, because a fork of a threaded process may hang."""

    def __init__(self, request: ChildRequest, log: Path, command: Sequence[str] = COMMAND) -> None:
        self._messages: queue.SimpleQueue[ChildMessage | None] = queue.SimpleQueue()
        # A session, and so a process group, of its own: its helpers can be ended with it.
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            cwd=log.parent,
            start_new_session=True,
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise RuntimeError("the child has pipes")
        self._stdout = stdout
        self._log = ChildLog(stderr, log, request.telemetry.context)
        _RUNNING.add(self)
        _hand_over(request, stdin)
        self._reader = threading.Thread(target=self._read, daemon=True, name="child-reader")
        self._reader.start()

    def next_message(self, seconds: float) -> ChildMessage | None:
        """The next message; None if there is none yet, or never will be: see `ended`."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    @property
    def ended(self) -> bool:
        """Whether the process is gone and everything it said was heard."""
        return not self._reader.is_alive() and self._messages.empty() and self.exit_code is not None

    @property
    def exit_code(self) -> int | None:
        """The exit code, the negative signal number, or None while it runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask_to_stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything it started."""
        self.end_at_once()
        self._process.wait()
        self._reader.join()
        self._stdout.close()
        self._log.close()
        _RUNNING.discard(self)

    def end_at_once(self) -> None:
        """Kill it and go on; whoever listens to it learns of its end."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            _log.debug("child_already_gone", pid=self._process.pid)

    def last_words(self) -> str:
        """The end of what it, or a library in it, wrote to stderr."""
        return self._log.last_words()

    def _read(self) -> None:
        for line in self._stdout:
            try:
                self._messages.put(decode(line))
            except ValidationError:
                # Half a line of a process that was killed while it wrote.
                _log.warning("child_message_unreadable", pid=self._process.pid)


_RUNNING: set[ChildProcess] = set()


def end_all_children() -> None:
    """Kill every child of this process at once, for a worker that must not wait."""
    for child in _RUNNING.copy():
        child.end_at_once()


def _hand_over(request: ChildRequest, stdin: IO[bytes]) -> None:
    try:
        with stdin:
            stdin.write(request.model_dump_json().encode())
    except BrokenPipeError:
        _log.warning("child_died_at_birth")


def _environment() -> dict[str, str]:
    """Ours without our secrets: the child needs neither database nor keys."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("INTRASLICE_")
    }
    # Progress bars are for terminals; the child's words go to a log.
    return {**environment, "TQDM_DISABLE": "1"}
