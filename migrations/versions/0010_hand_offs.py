"""Registry hand-offs of published checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

downgrade_drops = "all registry hand-offs"

_NOW = sa.text("now()")
_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "hand_offs",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("finished_at", _TIMESTAMP),
        sa.Column("next_try_at", _TIMESTAMP),
        sa.Column("reference", sa.Text),
        sa.Column("url", sa.Text),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("job_id", "target", name="pk_hand_offs"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_hand_offs_job_id_jobs", ondelete="CASCADE"
        ),
        sa.CheckConstraint("state IN ('done', 'failed', 'pending')", name="state_known"),
        sa.CheckConstraint(
            "(state = 'pending') = (next_try_at IS NOT NULL)", name="tried_while_pending"
        ),
    )
    op.create_index(
        "ix_hand_offs_next_try_at",
        "hand_offs",
        ["next_try_at"],
        postgresql_where=sa.text("next_try_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("hand_offs")
