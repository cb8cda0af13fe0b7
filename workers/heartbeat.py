"""Heartbeat of a worker or scheduler: its state file, written while its threads make progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from app.adapters.process_state import StateFile, state_file
from app.services.resources import Resources
from app.settings import Settings
from app.telemetry import get_logger
from workers.periodic_tasks import MaintenanceTask

INTERVAL_SECONDS = 2.0
LONGEST_TASK_SECONDS = 3600.0
"""Time after which a maintenance task counts as hung, for example on a dead connection."""
_log = get_logger(__name__)


class Heartbeat:
    """A thread that writes the state file while the watched threads live and make progress.

    Args:
        file: state file of this process.
        threads: names of the threads without which the process does not do its work.
        shutdown: set once the process is stopping, when its threads may end.
    """

    def __init__(self, file: StateFile, threads: Iterable[str], shutdown: threading.Event) -> None:
        self._file = file
        self._threads = frozenset(threads)
        self._shutdown = shutdown
        self._progress_at = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def watched(self, tasks: tuple[MaintenanceTask, ...]) -> tuple[MaintenanceTask, ...]:
        """Return the maintenance tasks, with progress recorded before each."""
        return tuple(step for task in tasks for step in (self._record_progress, task))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def problem(self) -> str | None:
        """Return why the process does not do its work; None if it does."""
        if self._shutdown.is_set():
            return None
        missing = self._threads - {thread.name for thread in threading.enumerate()}
        if missing:
            return f"thread {', '.join(sorted(missing))} has ended"
        seconds = time.monotonic() - self._progress_at
        if seconds > LONGEST_TASK_SECONDS:
            return f"a maintenance task has been running for {seconds:.0f} s"
        return None

    def _record_progress(self, _resources: Resources) -> None:
        self._progress_at = time.monotonic()

    def _run(self) -> None:
        healthy = True
        while not self._stopping.is_set():
            problem = self.problem()
            if problem is None:
                self._file.write()
            elif healthy:
                _log.error("heartbeat_stopped", reason=problem)
            healthy = problem is None
            self._stopping.wait(INTERVAL_SECONDS)


@contextmanager
def heartbeat(
    settings: Settings, command: str, threads: Iterable[str], shutdown: threading.Event
) -> Iterator[Heartbeat]:
    """Yield the process's heartbeat, to be started when its threads run; stop it at the end."""
    with state_file(settings.data_dir, command) as file:
        beating = Heartbeat(file, threads, shutdown)
        try:
            yield beating
        finally:
            beating.stop()
