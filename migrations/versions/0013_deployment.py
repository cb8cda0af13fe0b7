"""Identity of the deployment, prefixes of stored objects, and orphans awaiting removal.

Additive: code at revision 0012 runs on this schema. Its rows get an empty `store_prefix`, which is
where that code writes its objects.

A downgrade drops nothing for good: it leaves the deployment's identity, and which rows had an empty
prefix, as a comment on the table `uploads`, from which the next upgrade restores them. The store
then still belongs to the deployment, and jobs and uploads find their objects.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

downgrade_drops = None

_TIMESTAMP = sa.DateTime(timezone=True)
_NOW = sa.func.now()
_OWNERS = ("jobs", "uploads")

_REMEMBER = """
DO $$
DECLARE memo text;
BEGIN
  SELECT json_build_object(
    'deployment', row_to_json(deployment),
    'left_at', now(),
    'jobs', (SELECT coalesce(json_agg(id), '[]') FROM jobs WHERE store_prefix = ''),
    'uploads', (SELECT coalesce(json_agg(id), '[]') FROM uploads WHERE store_prefix = '')
  )::text INTO memo FROM deployment;
  IF memo IS NOT NULL THEN
    EXECUTE format('COMMENT ON TABLE uploads IS %L', memo);
  END IF;
END $$
"""
_RECALL = """
DO $$
DECLARE
  memo text := obj_description('uploads'::regclass, 'pg_class');
  former jsonb;
BEGIN
  IF memo LIKE '{"deployment" :%' THEN
    former := memo::jsonb;
    INSERT INTO deployment
      SELECT * FROM jsonb_populate_record(NULL::deployment, former -> 'deployment');
    UPDATE jobs SET store_prefix = (former #>> '{deployment,id}') || '/'
      WHERE created_at < (former ->> 'left_at')::timestamptz AND NOT former -> 'jobs' ? id;
    UPDATE uploads SET store_prefix = (former #>> '{deployment,id}') || '/'
      WHERE created_at < (former ->> 'left_at')::timestamptz AND NOT former -> 'uploads' ? id;
    COMMENT ON TABLE uploads IS NULL;
  END IF;
END $$
"""


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
    op.execute(_RECALL)


def downgrade() -> None:
    op.execute(_REMEMBER)
    op.drop_index("ix_jobs_artifacts_missing_at", "jobs")
    op.drop_index("ix_jobs_artifacts_checked_at", "jobs")
    for name in ("artifacts_missing_at", "artifacts_checked_at"):
        op.drop_column("jobs", name)
    for table in reversed(_OWNERS):
        op.drop_column(table, "store_prefix")
    op.drop_table("orphans")
    op.drop_table("deployment")
