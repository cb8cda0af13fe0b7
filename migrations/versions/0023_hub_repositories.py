"""Projects that own repositories of the Hub.

Additive: code at revision 0012 works with this schema; its workers push without reserving a
repository. Pushes of jobs that have been deleted, or pushed again, left no reference to fill from.
"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

downgrade_drops = "which projects own which repositories of the Hub"

_FIRST_PUSHES = """
    INSERT INTO hub_repositories (repository, project_id, created_at)
    SELECT DISTINCT ON (repository) repository, project_id, pushed_at
    FROM (
        SELECT
            lower(split_part(hand_offs.reference, ' at ', 1)) AS repository,
            jobs.project_id,
            coalesce(hand_offs.finished_at, hand_offs.created_at) AS pushed_at
        FROM hand_offs JOIN jobs ON jobs.id = hand_offs.job_id
        WHERE hand_offs.target = 'hub' AND hand_offs.reference IS NOT NULL
    ) AS pushes
    ORDER BY repository, pushed_at, project_id
"""
"""The reference of a finished hand-off is `namespace/name at commit`."""


def upgrade() -> None:
    op.create_table(
        "hub_repositories",
        sa.Column("repository", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("now()"),
        ),
        sa.PrimaryKeyConstraint("repository", name="pk_hub_repositories"),
        sa.CheckConstraint("repository = lower(repository)", name="lower_case"),
    )
    op.execute(_FIRST_PUSHES)


def downgrade() -> None:
    op.drop_table("hub_repositories")
