"""Webhooks and their deliveries."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

downgrade_drops = "all webhooks and their deliveries"

_NOW = sa.text("now()")
_ZERO = sa.text("0")
_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_webhooks()
    _create_deliveries()


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("webhooks")


def _create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("events", ARRAY(sa.Text), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("disabled_reason", sa.Text),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("failing_since", _TIMESTAMP),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("previous_salt", sa.Text),
        sa.Column("previous_until", _TIMESTAMP),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
        sa.CheckConstraint("NOT enabled OR disabled_reason IS NULL", name="reason_when_disabled"),
    )
    op.create_index("ix_webhooks_project_id", "webhooks", ["project_id", "id"])


def _create_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("webhook_id", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("tries_left", sa.Integer, nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False, server_default=_NOW),
        sa.Column("next_try_at", _TIMESTAMP),
        sa.Column("last_attempt_at", _TIMESTAMP),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.ForeignKeyConstraint(
            ["webhook_id"],
            ["webhooks.id"],
            name="fk_webhook_deliveries_webhook_id",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("state IN ('delivered', 'failed', 'pending')", name="state_known"),
        sa.CheckConstraint(
            "(state = 'pending') = (next_try_at IS NOT NULL)", name="tried_while_pending"
        ),
    )
    table = "webhook_deliveries"
    op.create_index("ix_webhook_deliveries_webhook_id", table, ["webhook_id", "id"])
    op.create_index("ix_webhook_deliveries_created_at", table, ["created_at"])
    op.create_index(
        "ix_webhook_deliveries_next_try_at",
        table,
        ["next_try_at"],
        postgresql_where=sa.text("next_try_at IS NOT NULL"),
    )
