"""Second databases for tests with several deployments, and copies of rows between databases."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from app.adapters.database.migrate import upgrade
from app.adapters.database.tables import metadata
from app.embedded.postgres import EmbeddedPostgres
from app.settings import Settings


@contextmanager
def new_database(server: EmbeddedPostgres) -> Iterator[str]:
    """Yield the SQLAlchemy URL of a migrated database without rows."""
    name = f"second_{uuid.uuid4().hex}"
    url = server.url.replace("/intraslice?", f"/{name}?")
    with psycopg.connect(plain(server.url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            upgrade(Settings(database_url=url))
            yield url
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def restore(source_url: str, target_url: str) -> None:
    """Replace all rows of a database by those of another one, as a restored dump does."""
    tables = [table.name for table in metadata.sorted_tables]
    with psycopg.connect(plain(source_url)) as source, psycopg.connect(plain(target_url)) as target:
        # Foreign keys within a table's rows and triggers are of no concern to a restore.
        target.execute("SET session_replication_role = replica")
        target.execute(f"TRUNCATE {', '.join(tables)} CASCADE")
        for table in tables:
            buffer = io.BytesIO()
            with source.cursor().copy(f"COPY {table} TO STDOUT") as rows:
                for chunk in rows:
                    buffer.write(chunk)
            with target.cursor().copy(f"COPY {table} FROM STDIN") as rows:
                rows.write(buffer.getvalue())


def plain(url: str) -> str:
    """Return the URL as psycopg takes it."""
    return url.replace("+psycopg", "")
