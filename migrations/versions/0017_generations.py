"""Playground: prompts to the models of succeeded jobs.

Additive: code at revision 0012 works with this schema. Its workers run no generations, which wait
for newer ones.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

downgrade_drops = "all prompts and answers of the playground"

_NOW = sa.text("now()")
_TIMESTAMP = sa.DateTime(timezone=True)
_LIVE = "state IN ('queued', 'running')"


def upgrade() -> None:
    op.create_table(
        "generations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("max_new_tokens", sa.Integer, nullable=False),
        sa.Column("temperature", sa.Float),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("models", JSONB, nullable=False),
        sa.Column("answers", JSONB, nullable=False),
        sa.Column("error", JSONB),
        sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("fencing_token", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_expires_at", _TIMESTAMP),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("started_at", _TIMESTAMP),
        sa.Column("finished_at", _TIMESTAMP),
        sa.PrimaryKeyConstraint("id", name="pk_generations"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_generations_job_id_jobs", ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "state IN ('cancelled', 'failed', 'queued', 'running', 'succeeded')",
            name="state_known",
        ),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL) AND "
            "(lease_owner IS NULL) = (lease_expires_at IS NULL)",
            name="lease_while_running",
        ),
        sa.CheckConstraint(f"({_LIVE}) = (finished_at IS NULL)", name="finished_when_ended"),
    )
    op.create_index("ix_generations_job_id", "generations", ["job_id", "id"])
    op.create_index("ix_generations_live", "generations", ["id"], postgresql_where=sa.text(_LIVE))


def downgrade() -> None:
    op.drop_table("generations")
