"""The audit log: who tried to change what."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, Table, Text, func

from app.adapters.database.tables.base import TIMESTAMP, metadata

# Without foreign keys: an entry outlives the key and the object it names.
audit = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text),
    Column("method", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("object_id", Text),
    Column("status", Integer, nullable=False),
    Column("request_id", Text, nullable=False),
    Index("ix_audit_project_id", "project_id", "id"),
)
