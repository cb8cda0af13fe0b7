"""Alembic environment: migrations in one transaction, with timeouts.

`app.adapters.database.migrate` passes its connection; the `alembic` command opens one for
INTRASLICE_DATABASE_URL.
"""

from alembic import context
from sqlalchemy import Connection

from app.adapters.database.engine import migration_transaction
from app.adapters.database.tables import metadata
from app.settings import get_settings


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata)
    context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("offline mode is not supported: migrations need a database connection")
if (transaction := context.config.attributes.get("connection")) is not None:
    run(transaction)
else:
    with migration_transaction(get_settings().database_url) as transaction:
        run(transaction)
