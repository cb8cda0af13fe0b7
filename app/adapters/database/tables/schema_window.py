"""Oldest revision of the code that works with the schema."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Table, Text, text

from app.adapters.database.tables.base import metadata

schema_window = Table(
    "schema_window",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=text("true")),
    Column("oldest_revision", Text, nullable=False),
    CheckConstraint("single", name="one_row"),
    CheckConstraint("oldest_revision ~ '^[0-9]{4}$'", name="oldest_revision_format"),
)
"""One row. Earlier versions of the code read it, so no migration may rename or drop it."""
