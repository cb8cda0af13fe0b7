"""Further devices of a job that runs on several.

Additive: code at revision 0012 works with this schema. Its workers claim jobs that ask for several
devices like any other.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

downgrade_drops = "on which further devices running jobs run"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("further_device_numbers", ARRAY(sa.Integer)))


def downgrade() -> None:
    op.drop_column("jobs", "further_device_numbers")
