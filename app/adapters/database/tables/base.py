"""Metadata and column types that all tables share."""

from __future__ import annotations

from sqlalchemy import DateTime, MetaData
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

TIMESTAMP = DateTime(timezone=True)
# none_as_null: "no value" is SQL's NULL, never the JSON value null.
JSON = JSONB(none_as_null=True)
