"""Requested names of registry hand-offs, and the fields of uploaded texts.

Additive: code at revision 0016 works with this schema. Its workers hand off under the service's own
name, and its uploads are not checked for their fields.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

downgrade_drops = "the names requested for registry hand-offs, and the fields of uploaded texts"


def upgrade() -> None:
    op.add_column("hand_offs", sa.Column("name", sa.Text))
    op.add_column("uploads", sa.Column("text_columns", JSONB))


def downgrade() -> None:
    op.drop_column("uploads", "text_columns")
    op.drop_column("hand_offs", "name")
