"""PostgreSQL's NOTIFY and LISTEN: ids of changed jobs, sent when the change is committed.

A notification is sent by the statement that makes the change, so it costs no round trip, never
comes before the change can be read, and is not sent if the change is rolled back. It is a hint:
it is lost while nobody listens, and what it says must be read from the tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import psycopg
from sqlalchemy import ColumnElement, func, make_url, select

from app.adapters.database.engine import Transaction
from app.adapters.database.errors import ErrorTranslation
from app.telemetry.outages import DATABASE, OUTAGES

_CHANNEL = "intraslice_jobs"
_CONNECT_SECONDS = 5
_PROBE_SECONDS = 15.0
_PROBE_ANSWER_SECONDS = 5.0


def announcement(job_id: ColumnElement[str]) -> ColumnElement[Any]:
    """Return a NOTIFY for the RETURNING clause of a statement that changes the job."""
    return func.pg_notify(_CHANNEL, job_id)


def announce(transaction: Transaction, job_id: str) -> None:
    """Send a NOTIFY as a statement of its own, for changes that write no event."""
    transaction.execute(select(func.pg_notify(_CHANNEL, job_id)))


async def listen(
    database_url: str, *, ready: Callable[[], None], changed: Callable[[str], None]
) -> NoReturn:
    """Listen for changes on one connection until it breaks.

    Args:
        database_url: as SQLAlchemy takes it.
        ready: called once nothing escapes us any more; what happened before is unknown.
        changed: called with the id of every job that changes.

    Raises:
        DatabaseUnavailableError: when the server is not there, or not any more.
    """
    address = make_url(database_url).set(drivername="postgresql")
    try:
        async with await psycopg.AsyncConnection.connect(
            address.render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
        ) as connection:
            await connection.execute(f"LISTEN {_CHANNEL}")
            OUTAGES.note_success(DATABASE)
            ready()
            while True:
                async for notice in connection.notifies(timeout=_PROBE_SECONDS):
                    changed(notice.payload)
                # Only this detects a server that vanished without closing the connection.
                async with asyncio.timeout(_PROBE_ANSWER_SECONDS):
                    await connection.execute("SELECT 1")
    except (psycopg.Error, TimeoutError) as error:
        raise ErrorTranslation(database_url).unavailable(error) from error
