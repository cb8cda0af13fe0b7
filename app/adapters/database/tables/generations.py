"""Prompts of the playground and the answers of both models."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    func,
    text,
)

from app.adapters.database.tables.base import JSON, TIMESTAMP, metadata
from app.domain.generation import GenerationState

_STATES = ", ".join(sorted(f"'{state}'" for state in GenerationState))

generations = Table(
    "generations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("key_id", Text),
    Column("state", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("max_new_tokens", Integer, nullable=False),
    Column("temperature", Float),
    Column("seed", BigInteger, nullable=False),
    Column("models", JSON, nullable=False),
    Column("answers", JSON, nullable=False),
    Column("error", JSON),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("fencing_token", BigInteger, nullable=False, server_default=text("0")),
    Column("lease_owner", Text),
    Column("lease_expires_at", TIMESTAMP),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("started_at", TIMESTAMP),
    Column("finished_at", TIMESTAMP),
    CheckConstraint(f"state IN ({_STATES})", name="state_known"),
    CheckConstraint(
        "(state = 'running') = (lease_owner IS NOT NULL) AND "
        "(lease_owner IS NULL) = (lease_expires_at IS NULL)",
        name="lease_while_running",
    ),
    CheckConstraint(
        "(state IN ('queued', 'running')) = (finished_at IS NULL)", name="finished_when_ended"
    ),
    Index("ix_generations_job_id", "job_id", "id"),
    Index("ix_generations_live", "id", postgresql_where=text("state IN ('queued', 'running')")),
)
"""`key_id` is the key that created the generation; NULL for the operator."""
