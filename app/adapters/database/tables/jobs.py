"""Jobs and what belongs to them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from app.adapters.database.tables.base import JSON, TIMESTAMP, metadata
from app.domain.job import DEFAULT_PRIORITY, HIGHEST_PRIORITY
from app.domain.lifecycle import LEASED, State


def _quoted(states: frozenset[State]) -> str:
    return ", ".join(sorted(f"'{state}'" for state in states))


jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("sweep_id", ForeignKey("sweeps.id")),
    Column("state", Text, nullable=False),
    Column("stage", Text),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("started_at", TIMESTAMP),
    Column("finished_at", TIMESTAMP),
    Column("model", JSON, nullable=False),
    Column("compression", JSON, nullable=False),
    Column("evaluation", JSON),
    Column("labels", JSON, nullable=False),
    Column("progress", JSON),
    Column("result", JSON),
    Column("error", JSON),
    Column("report", JSON),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False),
    Column("fencing_token", BigInteger, nullable=False, server_default=text("0")),
    Column("lease_owner", Text),
    Column("lease_expires_at", TIMESTAMP),
    Column("event_sequence", Integer, nullable=False, server_default=text("0")),
    Column("hints", Integer, nullable=False, server_default=text("0")),
    Column("next_hint_at", TIMESTAMP),
    Column("priority", SmallInteger, nullable=False, server_default=text(str(DEFAULT_PRIORITY))),
    Column("max_runtime_s", Integer),
    Column("max_pending_s", Integer),
    Column("queued_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("claimed_at", TIMESTAMP),
    Column("worked_seconds", Float, nullable=False, server_default=text("0")),
    Column("traceparent", Text),
    Column("pinned", Boolean, nullable=False, server_default=text("false")),
    Column("settled_at", TIMESTAMP),
    Column("expires_at", TIMESTAMP),
    Column("expired_at", TIMESTAMP),
    Column("store_prefix", Text, nullable=False, server_default=text("''")),
    Column("artifacts_checked_at", TIMESTAMP),
    Column("artifacts_missing_at", TIMESTAMP),
    Column("gpu_bytes", BigInteger),
    Column("host_bytes", BigInteger),
    Column("device_number", Integer),
    Column("further_device_numbers", ARRAY(Integer)),
    CheckConstraint(f"state IN ({_quoted(frozenset(State))})", name="state_known"),
    CheckConstraint(
        f"(state IN ({_quoted(LEASED)})) = (lease_owner IS NOT NULL) AND "
        "(lease_owner IS NULL) = (lease_expires_at IS NULL)",
        name="lease_while_worked_on",
    ),
    CheckConstraint("attempt BETWEEN 0 AND max_attempts", name="attempts_bounded"),
    CheckConstraint(f"priority BETWEEN 0 AND {HIGHEST_PRIORITY}", name="priority_bounded"),
    Index("ix_jobs_state", "state", "id"),
    Index("ix_jobs_project_id", "project_id", "id"),
    Index("ix_jobs_sweep_id", "sweep_id", "id", postgresql_where=text("sweep_id IS NOT NULL")),
    Index(
        "ix_jobs_lease_expires_at",
        "lease_expires_at",
        postgresql_where=text("lease_expires_at IS NOT NULL"),
    ),
    Index(
        "ix_jobs_next_hint_at",
        "next_hint_at",
        postgresql_where=text("next_hint_at IS NOT NULL"),
    ),
)

# A job that was retried has ended again since it was settled.
Index(
    "ix_jobs_unsettled",
    jobs.c.finished_at,
    postgresql_where=text(
        "finished_at IS NOT NULL AND (settled_at IS NULL OR settled_at < finished_at)"
    ),
)
Index(
    "ix_jobs_expires_at",
    jobs.c.expires_at,
    postgresql_where=text("expires_at IS NOT NULL AND NOT pinned"),
)

Index(
    "ix_jobs_artifacts_checked_at",
    jobs.c.artifacts_checked_at,
    postgresql_where=text("state = 'succeeded' AND expired_at IS NULL"),
)
Index(
    "ix_jobs_artifacts_missing_at",
    jobs.c.artifacts_missing_at,
    postgresql_where=text("artifacts_missing_at IS NOT NULL"),
)

Index(
    "ix_jobs_next",
    jobs.c.priority.desc(),
    jobs.c.id,
    postgresql_where=text("state = 'queued'"),
)
Index("ix_jobs_labels", jobs.c.labels, postgresql_using="gin")

turns = Table(
    "turns",
    metadata,
    Column("name", Text, primary_key=True),
    Column("taken_at", TIMESTAMP, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("attempt", Integer, nullable=False),
    Column("data", JSON, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("key", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("media_type", Text, nullable=False),
)

layer_files = Table(
    "layer_files",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("key", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    # Deferred: the key is taken first, so that two equal requests meet there and not later.
    Column(
        "job_id",
        ForeignKey("jobs.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
)
