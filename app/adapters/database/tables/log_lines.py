"""Stored lines of the log of a job's engine process."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Integer, Table, Text

from app.adapters.database.tables.base import JSON, TIMESTAMP, metadata

log_lines = Table(
    "log_lines",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("time", TIMESTAMP, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("level", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("fields", JSON, nullable=False),
    Column("bytes", Integer, nullable=False),
)
"""`sequence` is counted together with that of `events`, in `jobs.event_sequence`."""
