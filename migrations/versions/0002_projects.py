"""Jobs and idempotency keys belong to projects."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

downgrade_drops = "the projects of jobs and the idempotency keys that two projects share"

_DEFAULT = sa.text("'default'")


def upgrade() -> None:
    for table in ("jobs", "idempotency_keys"):
        column = sa.Column("project_id", sa.Text, nullable=False, server_default=_DEFAULT)
        op.add_column(table, column)
        # Existing rows belong to the default project; new rows must name theirs.
        op.alter_column(table, "project_id", server_default=None)
    op.create_index("ix_jobs_project_id", "jobs", ["project_id", "id"])
    op.drop_constraint("pk_idempotency_keys", "idempotency_keys")
    op.create_primary_key("pk_idempotency_keys", "idempotency_keys", ["project_id", "key"])


def downgrade() -> None:
    # If two projects used the same key, the older request keeps it.
    op.execute(
        "DELETE FROM idempotency_keys AS a USING idempotency_keys AS b"
        " WHERE a.key = b.key AND (a.created_at, a.project_id) > (b.created_at, b.project_id)"
    )
    op.drop_constraint("pk_idempotency_keys", "idempotency_keys")
    op.create_primary_key("pk_idempotency_keys", "idempotency_keys", ["key"])
    op.drop_index("ix_jobs_project_id", "jobs")
    for table in ("jobs", "idempotency_keys"):
        op.drop_column(table, "project_id")
