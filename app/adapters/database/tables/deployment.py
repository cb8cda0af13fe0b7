"""Identity of the deployment, and objects in its store without an owner."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Table, Text, func, text

from app.adapters.database.tables.base import TIMESTAMP, metadata

deployment = Table(
    "deployment",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=text("true")),
    Column("id", Text, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("store_claimed_at", TIMESTAMP),
    CheckConstraint("single", name="one_row"),
)
"""One row. `store_claimed_at` is set once the store's marker was written."""

orphans = Table(
    "orphans",
    metadata,
    Column("prefix", Text, primary_key=True),
    Column("listed_at", TIMESTAMP, nullable=False, server_default=func.now()),
)
"""Prefixes in the store that no row owned when they were listed first."""
