"""Database connections: pooled, replaced after a disconnect, and read-only for reads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import bindparam, cast, func, insert, select, text
from sqlalchemy.exc import DataError, InternalError

from app.adapters.database.engine import Database, Transaction
from app.adapters.database.tables import turns
from app.adapters.database.tables.base import JSON

pytestmark = pytest.mark.postgres


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


def process_of(transaction: Transaction) -> int:
    """Return the id of the server process of the connection."""
    number: int = transaction.scalar(select(func.pg_backend_pid()))
    return number


def close_all(database_url: str) -> None:
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_reads_and_transactions_reconnect_after_the_server_closed_their_connections(
    database: Database, database_url: str
) -> None:
    before = database.read(process_of)
    with database.transaction() as transaction:
        written = process_of(transaction)
    close_all(database_url)
    assert database.read(process_of) != before
    with database.transaction() as transaction:
        assert process_of(transaction) != written


def test_an_error_does_not_quote_the_parameters_of_its_statement(database: Database) -> None:
    """Errors are logged, and a parameter may be a prompt."""
    with (
        pytest.raises(DataError, match="division by zero") as caught,
        database.transaction() as transaction,
    ):
        transaction.execute(text("SELECT 1 / 0, :prompt"), {"prompt": "a secret"})
    assert "a secret" not in str(caught.value)


def test_a_read_cannot_write(database: Database) -> None:
    change = insert(turns).values(name="one", taken_at=func.now())
    with pytest.raises(InternalError, match="read-only"):
        database.read(lambda reading: reading.execute(change))
    with database.transaction() as transaction:
        assert transaction.scalar(select(func.count()).select_from(turns)) == 0


def test_many_readers_share_the_same_few_connections(database: Database) -> None:
    def crowd() -> set[int]:
        with ThreadPoolExecutor(20) as threads:
            return set(threads.map(lambda _: database.read(_slow_process), range(40)))

    def _slow_process(reading: Transaction) -> int:
        number: int = reading.scalar(text("SELECT pg_backend_pid() FROM pg_sleep(0.02)"))
        return number

    first = crowd()
    assert 1 < len(first) <= 6
    assert len(first | crowd()) <= 6


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\0b", "a\ufffdb"),
        ("\\\0", "\\\ufffd"),
        ("\\u0000", "\\u0000"),
        ({"texts": ["\0", "\n"]}, {"texts": ["\ufffd", "\n"]}),
    ],
)
def test_json_is_stored_without_nul_which_postgresql_rejects(
    database: Database, value: object, stored: object
) -> None:
    """A model may generate NUL, which then stands in reports."""
    literal = select(cast(bindparam("value", value, JSON), JSON))
    assert database.read(lambda reading: reading.scalar(literal)) == stored
