"""Base class of the embedded servers: data directory, lock, sockets, process and readiness."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from app.embedded.lock import DirectoryLock
from app.embedded.process import Command, EmbeddedError, ManagedProcess, Owner
from app.embedded.sockets import make_socket_directory

_PREDECESSOR_SECONDS = 15.0
"""Longest wait for the previous server of the directory to end."""
_POLL_SECONDS = 0.03


class ServerStartError(EmbeddedError):
    """A server exited, or did not become ready in time, while it was being started."""


class ServerProcess(ABC):
    """A server whose data live in `directory`, and which ends when this process ends.

    A subclass defines the command to run and the readiness check.
    """

    name: ClassVar[str]
    """Name for logs and error messages."""
    start_seconds: ClassVar[float]
    """Longest wait for the server to become ready."""

    def __init__(self, directory: Path, owner: Owner | None = None) -> None:
        self.directory = directory
        self.process: ManagedProcess | None = None
        self._owner = owner
        self._lock = DirectoryLock(directory)
        self._sockets: Path | None = None

    @property
    def log(self) -> Path:
        """File that receives the server's stdout and stderr."""
        return self.directory / "server.log"

    @property
    def socket_directory(self) -> Path:
        """Private directory of the server's unix sockets.

        Raises:
            RuntimeError: if the server is not running.
        """
        if self._sockets is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._sockets

    def start(self) -> ManagedProcess:
        """Start the server, wait until it is ready, and return its process.

        Raises:
            DirectoryInUseError: if another server uses the directory.
            EmbeddedError: if the server's programs are not installed.
            ServerStartError: if the server does not become ready; contains the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.acquire(_PREDECESSOR_SECONDS)
        try:
            self._sockets = make_socket_directory(self.directory, self._owner)
            self.process = ManagedProcess(self._prepare())
            self._wait_until_ready(self.process)
        except BaseException:
            self.stop()
            raise
        return self.process

    def stop(self) -> None:
        """Stop the server, remove its sockets and release its directory."""
        if self.process is not None:
            self.process.stop()
            self.process = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        self._lock.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> Command:
        """Prepare the data directory and return the command that serves it.

        The lock and the socket directory exist already.
        """

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return True when the server answers a request."""

    def _wait_until_ready(self, process: ManagedProcess) -> None:
        deadline = time.monotonic() + self.start_seconds
        while process.exit_code() is None and time.monotonic() < deadline:
            if self._is_ready():
                return
            time.sleep(_POLL_SECONDS)
        raise ServerStartError(f"{self.name} did not start:\n{process.log_tail()}")
