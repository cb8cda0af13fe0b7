"""Reading the revision of the database's schema and the versions of the code that it admits."""

from __future__ import annotations

from sqlalchemy import Connection, text

from app.domain.schema import Schema


def read_schema(transaction: Connection) -> Schema:
    """Return the state of the schema, of whichever revision it is."""
    if not _exists(transaction, "alembic_version"):
        return Schema(revision=None)
    revision: str | None = transaction.scalar(text("SELECT version_num FROM alembic_version"))
    if not _exists(transaction, "schema_window"):
        return Schema(revision=revision)
    oldest: str | None = transaction.scalar(text("SELECT oldest_revision FROM schema_window"))
    return Schema(revision=revision, oldest_code=oldest)


def _exists(transaction: Connection, table: str) -> bool:
    query = text("SELECT to_regclass(:table) IS NOT NULL")
    return bool(transaction.scalar(query, {"table": table}))
