"""Sweeps and their jobs; throughput of workers, for estimates."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

downgrade_drops = "all sweeps and the measured speeds"

_NOW = sa.text("now()")


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("model", JSONB, nullable=False),
        sa.Column("compression", JSONB, nullable=False),
        sa.Column("ratios", JSONB, nullable=False),
        sa.Column("evaluation", JSONB),
        sa.Column("labels", JSONB, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("request_hash", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
        sa.UniqueConstraint("project_id", "idempotency_key", name="uq_sweeps_idempotency_key"),
    )
    op.create_index("ix_sweeps_project_id", "sweeps", ["project_id", "id"])
    op.create_table(
        "rates",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("per_second", sa.Float, nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("device", "method", "stage", name="pk_rates"),
    )
    op.add_column("jobs", sa.Column("sweep_id", sa.Text))
    op.create_foreign_key("fk_jobs_sweep_id", "jobs", "sweeps", ["sweep_id"], ["id"])
    op.create_index(
        "ix_jobs_sweep_id",
        "jobs",
        ["sweep_id", "id"],
        postgresql_where=sa.text("sweep_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_sweep_id", "jobs")
    op.drop_column("jobs", "sweep_id")
    op.drop_table("rates")
    op.drop_table("sweeps")
