"""${message}"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

# Data that the downgrade drops, as a noun phrase, or None. `intraslice migrate --to` prints it.
downgrade_drops = None


def upgrade() -> None:
    # If earlier code no longer works with the schema, say from which revision on it does:
    # op.execute("UPDATE schema_window SET oldest_revision = '${up_revision}'")
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
