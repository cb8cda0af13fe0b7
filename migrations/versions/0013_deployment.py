"""Identity of the deployment, prefixes of stored objects, and orphans awaiting removal.

Additive: code at revision 0012 runs on this schema. Its rows get an empty `store_prefix`, which is
where that code writes its objects.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

downgrade_drops = (
    "the deployment's id and where in the store newer jobs and uploads have their files"
)

_TIMESTAMP = sa.DateTime(timezone=True)
_NOW = sa.func.now()
_OWNERS = ("jobs", "uploads")


def upgrade() -> None:
    op.create_table(
        "deployment",
        sa.Column("single", sa.Boolean, nullable=False, server_default=sa.text("true")),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("store_claimed_at", _TIMESTAMP),
        sa.PrimaryKeyConstraint("single", name="pk_deployment"),
        sa.CheckConstraint("single", name="one_row"),
    )
    op.create_table(
        "orphans",
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("listed_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("prefix", name="pk_orphans"),
    )
    for table in _OWNERS:
        op.add_column(
            table,
            sa.Column("store_prefix", sa.Text, nullable=False, server_default=sa.text("''")),
        )
    for name in ("artifacts_checked_at", "artifacts_missing_at"):
        op.add_column("jobs", sa.Column(name, _TIMESTAMP))
    op.create_index(
        "ix_jobs_artifacts_checked_at",
        "jobs",
        ["artifacts_checked_at"],
        postgresql_where=sa.text("state = 'succeeded' AND expired_at IS NULL"),
    )
    op.create_index(
        "ix_jobs_artifacts_missing_at",
        "jobs",
        ["artifacts_missing_at"],
        postgresql_where=sa.text("artifacts_missing_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_artifacts_missing_at", "jobs")
    op.drop_index("ix_jobs_artifacts_checked_at", "jobs")
    for name in ("artifacts_missing_at", "artifacts_checked_at"):
        op.drop_column("jobs", name)
    for table in reversed(_OWNERS):
        op.drop_column(table, "store_prefix")
    op.drop_table("orphans")
    op.drop_table("deployment")
