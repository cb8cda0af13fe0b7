"""Alembic environment: migrations in one transaction, with timeouts."""

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from app.adapters.database.tables import metadata
from app.settings import get_settings

ADVISORY_LOCK = 4_807_526_976


def run() -> None:
    url = context.config.attributes.get("database_url") or get_settings().database_url
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        # A migration gives up instead of blocking the queries queued after it.
        connection.execute(text("SET LOCAL statement_timeout = '120s'"))
        # One migration at a time: a second process waits here and then has nothing to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        context.configure(connection=connection, target_metadata=metadata)
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("offline mode is not supported: migrations need a database connection")
run()
