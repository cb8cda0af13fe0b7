"""Names of uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

downgrade_drops = "the names of uploads"


def upgrade() -> None:
    op.add_column("uploads", sa.Column("name", sa.Text))


def downgrade() -> None:
    op.drop_column("uploads", "name")
