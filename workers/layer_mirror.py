"""Copy of a job's resume state in the artifact store, so that another machine can resume."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from app.domain.errors import LeaseLostError, ServiceError
from app.domain.job import JobRecord
from app.services import layer_files
from app.services.resources import Resources
from app.telemetry import get_logger

_log = get_logger(__name__)


class LayerMirror:
    """A thread that uploads files, so that a slow store delays neither engine nor worker."""

    def __init__(self, resources: Resources, job: JobRecord, directory: Path) -> None:
        self.directory = directory
        self._resources = resources
        self._job = job
        self._names: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"layers-{job.id}")

    def start(self) -> None:
        """Fetch the files in the store, and upload those that only this machine has.

        Raises:
            LeaseLostError: if another worker owns the job.
            StoreUnavailableError: if the store does not answer.
        """
        stored = layer_files.fetch(self._resources, self._job, self.directory)
        is_measured = any(name.startswith(SENSITIVITY_PREFIX) for name in stored)
        for name in sorted(file.name for file in self.directory.glob("[!.]*")):
            # The stored sensitivity of all layers has replaced those of single layers, which a
            # crash may have left here.
            is_replaced = is_measured and name.startswith(MEASURED_PREFIX)
            if name in stored or is_replaced or _is_local(name) or _is_training(name):
                continue
            self._names.put(name)
        # A state in the store may be newer, and each one that is uploaded replaces it.
        states = sorted(file.name for file in self.directory.glob(f"{TRAINING_PREFIX}*"))
        if states and not any(map(_is_training, stored)):
            self._names.put(states[-1])
        self._thread.start()

    def add(self, name: str) -> None:
        """Upload a file that the engine has finished."""
        self._names.put(name)

    def flush(self) -> None:
        """Try once to upload each remaining file, then end; the job may be resumed."""
        self._join()

    def drop(self) -> None:
        """Stop without uploading the rest, which is no longer needed."""
        self._dropped.set()
        self._join()

    def _join(self) -> None:
        self._closing.set()
        self._names.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._dropped.is_set():
            name = self._names.get()
            if name is None or not self._upload(name):
                return

    def _upload(self, name: str) -> bool:
        """Upload one file, with retries; return false if further uploads are pointless."""
        while not self._dropped.is_set():
            file, replaces = self.directory / name, _replaced(name)
            try:
                layer_files.keep(self._resources, self._job, file, replaces=replaces)
                return True
            except LeaseLostError:
                return False
            except ServiceError as error:
                _log.warning("layer_not_uploaded", job_id=self._job.id, file=name, code=error.code)
            except Exception:
                if not file.exists() and (_is_training(name) or name.startswith(MEASURED_PREFIX)):
                    return True  # the engine has saved what replaces it, and removed this one
                # The job does not depend on the copy, and other threads judge the lease.
                _log.exception("layer_mirror_crashed", job_id=self._job.id, file=name)
                return False
            if self._closing.wait(self._resources.settings.maintenance_seconds):
                return False
        return False


_HIDDEN_STATES = "hidden-states.safetensors"
"""File that is rewritten often and stays on this machine.

Uploading the hidden states would take longer than computing them again.
"""

LOCAL_PREFIX = "local-"
"""Prefix of the names of other files that stay on this machine, as the engine writes them."""

TRAINING_PREFIX = "training-"
"""Prefix of the names of files with the state of a training, as the engine writes them.

Each one replaces the one before in the store.
"""


MEASURED_PREFIX, SENSITIVITY_PREFIX = "measured-", "sensitivity-"
"""Prefixes of the names of files with the sensitivity of one layer, and of all layers, as the
engine writes them.

Files of one layer are uploaded because measuring the layer again takes minutes, and they are
smaller than compressed layers. The file of all layers replaces them in the store. The gradients
stay on this machine: they are larger than the model, and computing them again takes a fifth of
the measurement's time.
"""


def _is_local(name: str) -> bool:
    return name == _HIDDEN_STATES or name.startswith(LOCAL_PREFIX)


def _is_training(name: str) -> bool:
    return name.startswith(TRAINING_PREFIX)


def _replaced(name: str) -> str | None:
    """Return the prefix of the names of the files that a file replaces in the store, or None."""
    if _is_training(name):
        return TRAINING_PREFIX
    return MEASURED_PREFIX if name.startswith(SENSITIVITY_PREFIX) else None
