"""Finished layers of jobs, from which another attempt resumes."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

downgrade_drops = "the finished layers of interrupted jobs"


def upgrade() -> None:
    op.create_table(
        "layer_files",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_layer_files"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_layer_files_job_id_jobs", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("layer_files")
