"""Published checkpoints on their way to registries and hubs."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
    text,
)

from app.adapters.database.tables.base import TIMESTAMP, metadata
from app.domain.registry_hand_off import HandOffState

_STATES = ", ".join(sorted(f"'{state}'" for state in HandOffState))

hand_offs = Table(
    "hand_offs",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("target", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("finished_at", TIMESTAMP),
    Column("next_try_at", TIMESTAMP),
    Column("reference", Text),
    Column("url", Text),
    Column("error", Text),
    Column("name", Text),
    PrimaryKeyConstraint("job_id", "target"),
    CheckConstraint(f"state IN ({_STATES})", name="state_known"),
    CheckConstraint("(state = 'pending') = (next_try_at IS NOT NULL)", name="tried_while_pending"),
    Index(
        "ix_hand_offs_next_try_at",
        "next_try_at",
        postgresql_where=text("next_try_at IS NOT NULL"),
    ),
)
