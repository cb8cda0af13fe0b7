"""The memory that jobs need on a host whose CPU runs them.

Additive: code at revision 0012 works with this schema. Jobs that it creates have no `host_bytes`
and count as fitting every host.
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

downgrade_drops = "how much host memory queued jobs need: workers then claim any of them"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("host_bytes", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("jobs", "host_bytes")
