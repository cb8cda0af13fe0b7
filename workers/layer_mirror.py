"""Copies finished layers to the store while the next one is being worked on."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from app.domain.errors import LeaseLostError, ServiceError
from app.domain.job import Job
from app.services import layer_files
from app.services.resources import Resources
from app.telemetry import get_logger

_log = get_logger(__name__)


class LayerMirror:
    """A thread, because a slow store must hold up neither the engine nor its listener."""

    def __init__(self, resources: Resources, job: Job, directory: Path) -> None:
        self.directory = directory
        self._resources = resources
        self._job = job
        self._names: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"layers-{job.id}")

    def start(self) -> None:
        """Fetch what the store holds, and send what only this machine does.

        Raises:
            LeaseLostError: if the job belongs to somebody else now.
            StoreUnavailableError: if the store does not answer.
        """
        held = layer_files.fetch(self._resources, self._job, self.directory)
        for name in sorted(file.name for file in self.directory.glob("[!.]*")):
            if name not in held and name not in _ONLY_HERE:
                self._names.put(name)
        self._thread.start()

    def add(self, name: str) -> None:
        """The engine has finished a file."""
        self._names.put(name)

    def flush(self) -> None:
        """The attempt ends, the job may not: send what is left, once, and end."""
        self._end()

    def drop(self) -> None:
        """Nobody will need the rest."""
        self._dropped.set()
        self._end()

    def _end(self) -> None:
        self._closing.set()
        self._names.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._dropped.is_set():
            name = self._names.get()
            if name is None or not self._sent(name):
                return

    def _sent(self, name: str) -> bool:
        """False if there is no use in sending more."""
        while not self._dropped.is_set():
            try:
                layer_files.keep(self._resources, self._job.lease, self.directory / name)
                return True
            except LeaseLostError:
                return False
            except ServiceError as error:
                _log.warning("layer_not_kept", job_id=self._job.id, file=name, code=error.code)
            except Exception:
                # The job does not depend on it, and the lease is not this thread's to judge.
                _log.exception("layer_mirror_crashed", job_id=self._job.id, file=name)
                return False
            if self._closing.wait(self._resources.settings.maintenance_seconds):
                return False
        return False


_ONLY_HERE = frozenset({"streams.safetensors", "recovery.safetensors"})
"""Written again and again. Sending the engine's hidden states would take longer than making them
again; a training that goes on elsewhere is made anew, after layers that are not."""
