"""Check that this version of the code works with the database's schema."""

from __future__ import annotations

from functools import lru_cache

from app.adapters.database.engine import Database
from app.adapters.database.migrate import head_revision
from app.domain.errors import SchemaError
from app.telemetry import get_logger

_log = get_logger(__name__)


def check_schema(database: Database) -> str | None:
    """Return the schema's revision if this code works with it.

    Raises:
        SchemaError: if the schema is older than this code, or too new for it.
        DatabaseUnavailableError: if the server does not answer.
    """
    schema, code = database.schema(), head_revision()
    problem = schema.problem(code)
    if problem is not None:
        raise SchemaError(problem)
    if schema.is_newer_than(code):
        _report_newer(schema.revision, code)
    return schema.revision


@lru_cache(maxsize=8)
def _report_newer(schema: str | None, code: str) -> None:
    """Log once in each process that the schema is newer than the code."""
    _log.warning("schema_is_newer_and_accepted", schema=schema, code=code)
