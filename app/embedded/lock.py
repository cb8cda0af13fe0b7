"""An exclusive lock on a directory by `flock`, which the kernel releases with the last holder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from app.embedded.process import EmbeddedError

_POLL_SECONDS = 0.05


class DirectoryInUseError(EmbeddedError):
    """Another running process holds the directory."""


class DirectoryLock:
    """An exclusive lock on `directory/lock`.

    A server that inherits `descriptor` holds the lock too. The lock is then held until the last
    process of the server has ended, even if this process is killed, so no second server opens the
    same files.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """File descriptor of the lock file, for processes that inherit the lock.

        Raises:
            RuntimeError: if the lock is not held.
        """
        if self._descriptor is None:
            raise RuntimeError("the lock is not held")
        return self._descriptor

    def acquire(self, patience: float = 0.0) -> None:
        """Take the lock, waiting up to `patience` seconds for its holder to release it.

        Raises:
            DirectoryInUseError: if another process still holds it.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.read(descriptor, 32).decode("ascii", errors="replace").strip()
                    os.close(descriptor)
                    raise DirectoryInUseError(
                        f"{self._path.parent} is in use by another running process"
                        + (f" (pid {holder})" if holder else "")
                    ) from None
                time.sleep(_POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock; do nothing if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
