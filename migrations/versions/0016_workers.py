"""Registered workers, the GPU memory that jobs need, and the device that runs a job.

Additive: code at revision 0012 works with this schema. Its workers register nothing and claim any
queued job, as before. Jobs that it creates have no `gpu_bytes` and count as fitting every GPU.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

downgrade_drops = "how much GPU memory queued jobs need: workers then claim any of them"

_TIMESTAMP = sa.DateTime(timezone=True)
_NOW = sa.func.now()


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("host_memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("devices", JSONB, nullable=False),
        sa.Column("started_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("seen_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("expires_at", _TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.add_column("jobs", sa.Column("gpu_bytes", sa.BigInteger))
    op.add_column("jobs", sa.Column("device_number", sa.Integer))


def downgrade() -> None:
    for name in ("device_number", "gpu_bytes"):
        op.drop_column("jobs", name)
    op.drop_table("workers")
