"""Connections to PostgreSQL, and the only place that commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.domain.errors import DatabaseUnavailableError, ResourceBusyError

Transaction = Connection
"""What services pass from repository to repository; they never commit it themselves."""

_LOCK_NOT_AVAILABLE = "55P03"
_CONNECT_SECONDS = 5
_POOL_WAIT_SECONDS = 10.0
_OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": "15s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "30s",
        "timezone": "UTC",
    }.items()
)


class Database:
    """A pool of connections; every statement and every wait for a lock has a limit."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self._engine = create_engine(
            url,
            pool_size=pool_size,
            pool_timeout=_POOL_WAIT_SECONDS,
            pool_pre_ping=True,
            connect_args={"options": _OPTIONS, "connect_timeout": _CONNECT_SECONDS},
        )

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commit at the end of the block, roll back if it raises.

        Raises:
            ResourceBusyError: if a row stayed locked by somebody else.
            DatabaseUnavailableError: if the server does not answer.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                raise ResourceBusyError from error
            raise DatabaseUnavailableError from error
        except (InterfaceError, PoolTimeoutError) as error:
            raise DatabaseUnavailableError from error

    def schema_version(self) -> str | None:
        """The migration the database is at; None if it was never migrated."""
        with self.transaction() as transaction:
            exists = transaction.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL"))
            if not exists:
                return None
            version: str | None = transaction.scalar(
                text("SELECT version_num FROM alembic_version")
            )
            return version

    def close(self) -> None:
        self._engine.dispose()
