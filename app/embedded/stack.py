"""The whole service on one machine: PostgreSQL, Valkey, API, worker and optionally S3."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

import httpx

from app.embedded.group import Group, Member, RestartPolicy, next_delay
from app.embedded.lock import DirectoryInUseError, DirectoryLock
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.process import Command, EmbeddedError, ManagedProcess
from app.embedded.seaweed import EmbeddedS3
from app.embedded.server_process import ServerProcess, ServerStartError
from app.embedded.valkey import EmbeddedValkey

_READY_SECONDS = 120.0
_MIGRATION_SECONDS = 120.0
_API_STOP_SECONDS = 8.0
_WORKER_STOP_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """Data directory and address of the stack; port 0 selects a free port."""

    data_dir: Path
    host: str
    port: int
    auth: Literal["on", "off"]
    s3: bool = False
    """Store artifacts in an embedded S3 server instead of a directory."""
    claim_store: bool = False
    """Make the artifact store this service's own, whatever its marker says."""


class Stack:
    """A supervised group of all processes of the service, also usable as a context manager.

    Args:
        options: data directory and address.
        report: receives one line for every restart.
        restarts: decides when a crashed member is started again.
    """

    def __init__(
        self,
        options: StackOptions,
        report: Callable[[str], None],
        restarts: RestartPolicy = next_delay,
    ) -> None:
        self._options = options
        self._lock = DirectoryLock(options.data_dir)
        self._group = Group(report, restarts)
        self._listener: socket.socket | None = None
        self._environment: dict[str, str] = {}

    @property
    def url(self) -> str:
        """URL of the API, as seen from this machine.

        Raises:
            RuntimeError: if the service is not running.
        """
        if self._listener is None:
            raise RuntimeError("the service is not running")
        host = self._options.host
        if host in {"0.0.0.0", "::"}:
            host = "127.0.0.1"
        port = self._listener.getsockname()[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self, stop_requested: Callable[[], bool]) -> None:
        """Start everything and return when it is ready, or early when a stop is requested.

        Raises:
            DirectoryInUseError: if another stack uses the data directory.
            EmbeddedError: if a member does not start.
        """
        steps = [self._claim, self._start_servers, self._migrate, self._start_programs]
        if self._options.claim_store:
            steps.insert(-1, self._claim_store)
        for step in steps:
            if stop_requested():
                return
            step()
        self._wait_until_ready(stop_requested)

    def run(self, stop_requested: Callable[[], bool]) -> None:
        """Supervise the members until a stop is requested.

        Raises:
            GroupFailedError: if a member crashes too often.
        """
        self._group.run(stop_requested)

    def stop(self) -> None:
        """Stop all members and release the port and the directory."""
        try:
            self._group.stop()
        finally:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            self._lock.release()

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _claim(self) -> None:
        """Lock the directory and bind the port before anything is started."""
        directory = self._options.data_dir
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._lock.acquire()
        except DirectoryInUseError as error:
            raise DirectoryInUseError(
                f"{error}; stop that `intraslice up`, or choose another --data-dir"
            ) from None
        self._listener = _bind(self._options.host, self._options.port)

    def _start_servers(self) -> None:
        data_dir = self._options.data_dir
        postgres = EmbeddedPostgres(data_dir / "postgres")
        valkey = EmbeddedValkey(data_dir / "valkey")
        store = EmbeddedS3(data_dir / "s3") if self._options.s3 else None
        servers: list[ServerProcess | None] = [postgres, valkey, store]
        for server in servers:
            if server is not None:
                self._group.add(Member(name=server.name, start=server.start, stop=server.stop))
        self._environment = {**os.environ, **self._settings(postgres.url, valkey.url)}
        if store is not None:
            self._environment |= {**store.environment, "INTRASLICE_ARTIFACT_STORE": store.url}

    def _settings(self, database_url: str, broker_url: str) -> dict[str, str]:
        """Return the settings that the members read beside this process's own environment."""
        if self._listener is None:
            raise RuntimeError("the port is not bound yet")
        return {
            "INTRASLICE_DATA_DIR": str(self._options.data_dir.resolve()),
            "INTRASLICE_DATABASE_URL": database_url,
            "INTRASLICE_BROKER_URL": broker_url,
            "INTRASLICE_HOST": self._options.host,
            "INTRASLICE_PORT": str(self._listener.getsockname()[1]),
            "INTRASLICE_AUTH": self._options.auth,
        }

    def _migrate(self) -> None:
        process = ManagedProcess(self._program("migrate", stop_seconds=5.0))
        if process.wait(_MIGRATION_SECONDS) != 0:
            process.stop()
            raise ServerStartError(f"the database migration failed:\n{process.log_tail(40)}")

    def _claim_store(self) -> None:
        """Claim the store; whether that succeeded shows in the readiness of the service."""
        command = self._program("maintenance", "--claim-store", stop_seconds=5.0)
        ManagedProcess(command).wait(_MIGRATION_SECONDS)

    def _start_programs(self) -> None:
        if self._listener is None:
            raise RuntimeError("the port is not bound yet")
        descriptor = self._listener.fileno()
        # The API inherits the listening socket, so requests queue while it is being restarted.
        api = self._program(
            "serve",
            "--descriptor",
            str(descriptor),
            stop_seconds=_API_STOP_SECONDS,
            inherited=(descriptor,),
        )
        worker = self._program("worker", stop_seconds=_WORKER_STOP_SECONDS)
        for name, command in (("API", api), ("worker", worker)):
            self._group.add(Member(name=name, start=partial(ManagedProcess, command)))

    def _program(
        self, name: str, *options: str, stop_seconds: float, inherited: tuple[int, ...] = ()
    ) -> Command:
        logs = self._options.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        return Command(
            name=name,
            # -P keeps the working directory from shadowing a package.
            arguments=[sys.executable, "-P", "-m", "app.cli.main", name, *options],
            log=logs / f"{name}.log",
            cwd=self._options.data_dir,
            stop_seconds=stop_seconds,
            environment=self._environment,
            guarded=True,
            inherited=inherited,
        )

    def _wait_until_ready(self, stop_requested: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        answer = "no answer"
        with httpx.Client(timeout=5.0, trust_env=False) as client:
            while time.monotonic() < deadline and not stop_requested():
                self._group.tend()
                with contextlib.suppress(httpx.TransportError):
                    response = client.get(f"{self.url}/readyz")
                    if response.status_code == httpx.codes.OK:
                        return
                    answer = response.text
                    _require_own_store(response)
                time.sleep(0.1)
        if not stop_requested():
            logs = self._options.data_dir / "logs"
            raise ServerStartError(
                f"the service is not ready after {_READY_SECONDS:g} s ({answer}); see {logs}"
            )


def _require_own_store(response: httpx.Response) -> None:
    """Raise if the service waits for an operator because the store is another deployment's."""
    checks = response.json().get("checks", {})
    problem = checks.get("deployment", {}).get("problem")
    if problem is not None:
        raise ServerStartError(f"{problem} (for `intraslice up`: its option --claim-store)")


def _bind(host: str, port: int) -> socket.socket:
    """Bind the port now, so that no other process takes it during the start.

    Raises:
        EmbeddedError: if the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise EmbeddedError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error
    return listener
