"""Methods that a sweep compares.

Additive: code at revision 0012 works with this schema, and its sweeps have one method, that of
their settings.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

downgrade_drops = "which methods sweeps compare; their jobs stay"


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("methods", JSONB))


def downgrade() -> None:
    op.drop_column("sweeps", "methods")
