"""Retention of artifacts, last runs of periodic tasks, traces of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

downgrade_drops = "expiry times, pins and trace contexts of jobs"

_TIMESTAMP = sa.DateTime(timezone=True)
_FALSE = sa.text("false")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("traceparent", sa.Text))
    op.add_column("jobs", sa.Column("pinned", sa.Boolean, nullable=False, server_default=_FALSE))
    for name in ("settled_at", "expires_at", "expired_at"):
        op.add_column("jobs", sa.Column(name, _TIMESTAMP))
    op.create_index(
        "ix_jobs_unsettled",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text(
            "finished_at IS NOT NULL AND (settled_at IS NULL OR settled_at < finished_at)"
        ),
    )
    op.create_index(
        "ix_jobs_expires_at",
        "jobs",
        ["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL AND NOT pinned"),
    )
    op.create_table(
        "turns",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("taken_at", _TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_turns"),
    )


def downgrade() -> None:
    op.drop_table("turns")
    op.drop_index("ix_jobs_expires_at", "jobs")
    op.drop_index("ix_jobs_unsettled", "jobs")
    for name in ("expired_at", "expires_at", "settled_at", "pinned", "traceparent"):
        op.drop_column("jobs", name)
