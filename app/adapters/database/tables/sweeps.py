"""Sweeps: what their jobs share."""

from __future__ import annotations

from sqlalchemy import Column, Index, Table, Text, UniqueConstraint, func

from app.adapters.database.tables.base import JSON, TIMESTAMP, metadata

sweeps = Table(
    "sweeps",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("model", JSON, nullable=False),
    Column("compression", JSON, nullable=False),
    Column("ratios", JSON, nullable=False),
    Column("evaluation", JSON),
    Column("labels", JSON, nullable=False),
    Column("idempotency_key", Text),
    Column("request_hash", Text, nullable=False),
    Column("methods", JSON),
    UniqueConstraint("project_id", "idempotency_key", name="uq_sweeps_idempotency_key"),
    Index("ix_sweeps_project_id", "project_id", "id"),
)
