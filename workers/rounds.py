"""A thread that does rounds of work: without a pause while something is due."""

from __future__ import annotations

import threading
from collections.abc import Callable

from app.domain.errors import ServiceError
from app.services.resources import Resources
from app.telemetry import get_logger

_log = get_logger(__name__)


class RoundLoop:
    """Rounds of one kind of work, whose truth are rows: no message is needed.

    Args:
        resources: of this process.
        name: of the thread.
        work: one round; returns how much was done. After 0, the next is `maintenance_seconds` later.
    """

    def __init__(self, resources: Resources, name: str, work: Callable[[Resources], int]) -> None:
        self._resources = resources
        self._name = name
        self._work = work
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience: float | None = None) -> None:
        """Wait for the round that is under way, at most for so many seconds."""
        self._done.set()
        self._thread.join(patience)

    def _run(self) -> None:
        while not self._done.is_set():
            if not self._round():
                self._done.wait(self._resources.settings.maintenance_seconds)

    def _round(self) -> int:
        try:
            return self._work(self._resources)
        except ServiceError as error:
            _log.warning(f"{self._name}_failed", code=error.code)
        except Exception:
            # The thread must outlive a bug; what was not recorded is tried again.
            _log.exception(f"{self._name}_crashed")
        return 0
