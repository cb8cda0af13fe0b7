"""Measured speeds."""

from __future__ import annotations

from sqlalchemy import Column, Float, Table, Text, func

from app.adapters.database.tables.base import TIMESTAMP, metadata

rates = Table(
    "rates",
    metadata,
    Column("device", Text, primary_key=True),
    Column("method", Text, primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("per_second", Float, nullable=False),
    Column("measured_at", TIMESTAMP, nullable=False, server_default=func.now()),
)
