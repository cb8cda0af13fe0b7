"""Uploads of models and texts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

downgrade_drops = "all uploads"

_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("files", postgresql.JSONB, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("part_bytes", sa.BigInteger, nullable=False),
        sa.Column("error", postgresql.JSONB),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=sa.func.now()),
        sa.Column("checked_at", _TIMESTAMP),
        sa.Column("expires_at", _TIMESTAMP),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.CheckConstraint("kind IN ('model', 'text')", name="kind_known"),
        sa.CheckConstraint(
            "state IN ('open', 'ready', 'refused', 'verifying')", name="state_known"
        ),
    )
    op.create_index("ix_uploads_project_id", "uploads", ["project_id", "id"])
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])


def downgrade() -> None:
    op.drop_table("uploads")
