"""Jobs, their events and artifacts, the outbox, idempotency keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

downgrade_drops = "all jobs with their events and artifacts"

_NOW = sa.text("now()")
_ZERO = sa.text("0")
_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_jobs()
    _create_events()
    _create_artifacts()
    _create_outbox()
    _create_idempotency_keys()


def downgrade() -> None:
    for table in ("idempotency_keys", "outbox", "artifacts", "events", "jobs"):
        op.drop_table(table)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("stage", sa.Text),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("started_at", _TIMESTAMP),
        sa.Column("finished_at", _TIMESTAMP),
        sa.Column("model", JSONB, nullable=False),
        sa.Column("compression", JSONB, nullable=False),
        sa.Column("evaluation", JSONB),
        sa.Column("labels", JSONB, nullable=False),
        sa.Column("progress", JSONB),
        sa.Column("result", JSONB),
        sa.Column("error", JSONB),
        sa.Column("report", JSONB),
        sa.Column("attempt", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("fencing_token", sa.BigInteger, nullable=False, server_default=_ZERO),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_expires_at", _TIMESTAMP),
        sa.Column("event_sequence", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("hints", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("next_hint_at", _TIMESTAMP),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.CheckConstraint(
            "state IN ('cancelled', 'cancelling', 'failed', 'queued', 'running', 'succeeded')",
            name="state_known",
        ),
        sa.CheckConstraint(
            "(state IN ('cancelling', 'running')) = (lease_owner IS NOT NULL) AND "
            "(lease_owner IS NULL) = (lease_expires_at IS NULL)",
            name="lease_while_worked_on",
        ),
        sa.CheckConstraint("attempt BETWEEN 0 AND max_attempts", name="attempts_bounded"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state", "id"])
    for column in ("lease_expires_at", "next_hint_at"):
        where = sa.text(f"{column} IS NOT NULL")
        op.create_index(f"ix_jobs_{column}", "jobs", [column], postgresql_where=where)


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("data", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "sequence", name="pk_events"),
        _belongs_to_job("events"),
    )


def _create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_artifacts"),
        _belongs_to_job("artifacts"),
    )


def _create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        _belongs_to_job("outbox"),
    )


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("request_hash", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("key", name="pk_idempotency_keys"),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
            name="fk_idempotency_keys_job_id",
            ondelete="CASCADE",
            deferrable=True,
            initially="DEFERRED",
        ),
    )


def _belongs_to_job(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["job_id"], ["jobs.id"], name=f"fk_{table}_job_id", ondelete="CASCADE"
    )
