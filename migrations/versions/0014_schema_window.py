"""Oldest revision of the code that works with the schema.

Additive, as 0013 is: code at revision 0012 works with this schema. Later migrations that remove or
change what earlier code uses raise the value.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

downgrade_drops = None


def upgrade() -> None:
    op.create_table(
        "schema_window",
        sa.Column("single", sa.Boolean, nullable=False, server_default=sa.text("true")),
        sa.Column("oldest_revision", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("single", name="pk_schema_window"),
        sa.CheckConstraint("single", name="one_row"),
        sa.CheckConstraint("oldest_revision ~ '^[0-9]{4}$'", name="oldest_revision_format"),
    )
    op.execute("INSERT INTO schema_window (oldest_revision) VALUES ('0012')")


def downgrade() -> None:
    op.drop_table("schema_window")
