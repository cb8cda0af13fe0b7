"""Connections to PostgreSQL, the only place that commits, and turns at periodic tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from pydantic_core import from_json
from sqlalchemy import Connection, Engine, NullPool, create_engine, func, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from app.adapters.database.errors import ErrorTranslation
from app.adapters.database.json_text import to_storable_json
from app.adapters.database.schema import read_schema
from app.adapters.database.tables import turns
from app.domain.schema import Schema

Transaction = Connection
"""Connection that services pass to repositories; only `Database` commits it."""

_MIGRATION_LOCK = 4_807_526_976
"""Key of the advisory lock that one migrating process holds."""
_CONNECT_SECONDS = 5
_POOL_WAIT_SECONDS = 10.0
_READERS = 6
"""Connections for single reads; more would only compete for the server's cores."""
_SESSION = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
    "timezone": "UTC",
}
_READING = {"default_transaction_read_only": "on"}

_Answer = TypeVar("_Answer")


class Database:
    """Two pools of connections; every statement and every wait for a lock has a limit.

    Most requests to the API are single reads. They skip the cost of a transaction: one exchange
    with the server instead of four (ping, begin, query, commit), after each of which the thread
    has to wait for the interpreter lock again.
    """

    def __init__(self, url: str, *, pool_size: int = 15) -> None:
        self._errors = ErrorTranslation(url)
        self.address = self._errors.server
        self._engine = _engine(url, _SESSION, pool_size=pool_size, pool_pre_ping=True)
        self._readers = _engine(
            url,
            _SESSION | _READING,
            pool_size=_READERS,
            pool_reset_on_return=None,
            isolation_level="AUTOCOMMIT",
        )

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commit at the end of the block, roll back if it raises.

        Raises:
            ResourceBusyError: if a row stayed locked by another transaction.
            DatabaseUnavailableError: if the server does not answer.
        """
        with self._errors.translated(), self._engine.begin() as connection:
            yield connection

    def read(self, question: Callable[[Transaction], _Answer]) -> _Answer:
        """Run a read of one statement, which is a transaction of its own.

        A read that fails on a dead connection is repeated on a new one, which is safe because the
        server lets these connections read only.

        Raises:
            DatabaseUnavailableError: if the server does not answer.
        """
        with self._errors.translated():
            try:
                return self._ask(question)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The pool has discarded all connections of the same age with it.
                return self._ask(question)

    def _ask(self, question: Callable[[Transaction], _Answer]) -> _Answer:
        with self._readers.connect() as connection:
            return question(connection)

    def schema(self) -> Schema:
        """Return the state of the database's schema."""
        with self.transaction() as transaction:
            return read_schema(transaction)

    def close(self) -> None:
        self._engine.dispose()
        self._readers.dispose()


@contextmanager
def migration_transaction(url: str) -> Iterator[Transaction]:
    """Commit the migrations of the block together; those of other processes wait for the end.

    Raises:
        ResourceBusyError: if a table stayed locked by another transaction.
        DatabaseUnavailableError: if the server does not answer.
    """
    errors = ErrorTranslation(url)
    engine = create_engine(
        url, poolclass=NullPool, connect_args={"connect_timeout": _CONNECT_SECONDS}
    )
    with errors.translated(), engine.begin() as connection:
        # A migration gives up instead of blocking the queries queued after it.
        connection.execute(text("SET LOCAL statement_timeout = '120s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        yield connection


def take_turn(transaction: Transaction, task: str, seconds: float) -> bool:
    """Return True for one caller in every `seconds`, in whichever process it runs."""
    row = insert(turns).values(name=task, taken_at=func.now())
    taken = transaction.scalar(
        row.on_conflict_do_update(
            index_elements=[turns.c.name],
            set_={"taken_at": func.now()},
            where=turns.c.taken_at < func.now() - timedelta(seconds=seconds),
        ).returning(turns.c.name)
    )
    return taken is not None


def _engine(url: str, session: dict[str, str], **pool: Any) -> Engine:
    """Return a pool that keeps its connections open, because opening one starts a process.

    The connection used last is used first, so that a few warm ones do most of the work.
    """
    options = " ".join(f"-c {name}={value}" for name, value in session.items())
    return create_engine(
        url,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_SECONDS,
        pool_use_lifo=True,
        connect_args={"options": options, "connect_timeout": _CONNECT_SECONDS},
        hide_parameters=True,  # errors are logged, and a parameter may be a prompt
        json_serializer=to_storable_json,
        json_deserializer=from_json,  # twice as fast as the standard library's
        **pool,
    )
