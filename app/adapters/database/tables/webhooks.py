"""Webhooks and what is sent to them."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from app.adapters.database.tables.base import TIMESTAMP, metadata
from app.domain.webhook import DeliveryState

_STATES = ", ".join(sorted(f"'{state}'" for state in DeliveryState))

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False),
    Column("description", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", Text),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("failing_since", TIMESTAMP),
    Column("salt", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("previous_salt", Text),
    Column("previous_until", TIMESTAMP),
    CheckConstraint("NOT enabled OR disabled_reason IS NULL", name="reason_when_disabled"),
    Index("ix_webhooks_project_id", "project_id", "id"),
)

# The job may be deleted before its last event has arrived: no foreign key.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("webhook_id", ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("type", Text, nullable=False),
    Column("job_id", Text),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("tries_left", Integer, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("next_try_at", TIMESTAMP),
    Column("last_attempt_at", TIMESTAMP),
    Column("last_status", Integer),
    Column("last_error", Text),
    CheckConstraint(f"state IN ({_STATES})", name="state_known"),
    CheckConstraint("(state = 'pending') = (next_try_at IS NOT NULL)", name="tried_while_pending"),
    Index("ix_webhook_deliveries_webhook_id", "webhook_id", "id"),
    Index("ix_webhook_deliveries_created_at", "created_at"),
    Index(
        "ix_webhook_deliveries_next_try_at",
        "next_try_at",
        postgresql_where=text("next_try_at IS NOT NULL"),
    ),
)
