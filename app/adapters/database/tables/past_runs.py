"""Durations of finished jobs, and the speeds that earlier releases kept in their place."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Identity, Index, Table, Text, func

from app.adapters.database.tables.base import JSON, TIMESTAMP, metadata

past_runs = Table(
    "past_runs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("device", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("work", JSON, nullable=False),
    Column("seconds", JSON, nullable=False),
    Column("predicted_seconds", Float),
    Column("measured_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Index("ix_past_runs_device", "device", "id"),
)

# Workers of revision 0016 still write it; nothing reads it.
rates = Table(
    "rates",
    metadata,
    Column("device", Text, primary_key=True),
    Column("method", Text, primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("per_second", Float, nullable=False),
    Column("measured_at", TIMESTAMP, nullable=False, server_default=func.now()),
)
