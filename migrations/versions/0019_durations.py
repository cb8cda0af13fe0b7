"""Durations of finished jobs, and the time that workers spent on a job.

Additive: code at revision 0016 works with this schema. Its workers write `rates`, which is no
longer read, and count no work; estimates are then those of the cost model, and the work of such an
attempt counts as 0.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

downgrade_drops = "durations of finished jobs, by which others are estimated"

_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "past_runs",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("work", JSONB, nullable=False),
        sa.Column("seconds", JSONB, nullable=False),
        sa.Column("predicted_seconds", sa.Float),
        sa.Column("measured_at", _TIMESTAMP, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("id", name="pk_past_runs"),
    )
    op.create_index("ix_past_runs_device", "past_runs", ["device", "id"])
    op.add_column(
        "jobs", sa.Column("worked_seconds", sa.Float, nullable=False, server_default=sa.text("0"))
    )


def downgrade() -> None:
    op.drop_column("jobs", "worked_seconds")
    op.drop_table("past_runs")
