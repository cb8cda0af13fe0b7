"""Log lines of jobs.

Additive: code at revision 0016 works with this schema. Its workers store no lines.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

downgrade_drops = "the stored log lines of jobs"


def upgrade() -> None:
    op.create_table(
        "log_lines",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("fields", JSONB, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "sequence", name="pk_log_lines"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_log_lines_job_id", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("log_lines")
