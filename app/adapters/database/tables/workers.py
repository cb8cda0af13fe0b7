"""Workers that are registered, with their devices."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Table, Text, func

from app.adapters.database.tables.base import JSON, TIMESTAMP, metadata

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("host_memory_bytes", BigInteger, nullable=False),
    Column("devices", JSON, nullable=False),
    Column("started_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("seen_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("expires_at", TIMESTAMP, nullable=False),
)
"""A worker is live until `expires_at`, which each of its heartbeats moves."""
