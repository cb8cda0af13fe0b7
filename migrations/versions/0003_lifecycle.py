"""Pause and resume, priorities and limits of jobs; the lifecycle enforced by a trigger."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

downgrade_drops = "priorities, time limits and waiting times of jobs, and the state of paused ones"

_TIMESTAMP = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_BEFORE = (
    "'cancelled', 'cancelling', 'failed', 'queued', 'running', 'succeeded'",
    "'cancelling', 'running'",
)
_AFTER = (
    "'cancelled', 'cancelling', 'failed', 'paused', 'pausing', 'queued', 'running', 'succeeded'",
    "'cancelling', 'pausing', 'running'",
)
_LEGAL = """
    ('queued', 'running'), ('queued', 'failed'), ('queued', 'paused'), ('queued', 'cancelled'),
    ('running', 'succeeded'), ('running', 'failed'), ('running', 'queued'),
    ('running', 'pausing'), ('running', 'cancelling'),
    ('pausing', 'paused'), ('pausing', 'succeeded'), ('pausing', 'failed'),
    ('pausing', 'cancelling'),
    ('paused', 'queued'), ('paused', 'cancelled'),
    ('cancelling', 'cancelled'),
    ('failed', 'queued'), ('cancelled', 'queued')
"""


def upgrade() -> None:
    _set_states(*_AFTER)
    op.add_column(
        "jobs",
        sa.Column("priority", sa.SmallInteger, nullable=False, server_default=sa.text("5")),
    )
    for name in ("max_runtime_s", "max_pending_s"):
        op.add_column("jobs", sa.Column(name, sa.Integer))
    op.add_column("jobs", sa.Column("queued_at", _TIMESTAMP, nullable=False, server_default=_NOW))
    op.execute("UPDATE jobs SET queued_at = created_at")
    op.add_column("jobs", sa.Column("claimed_at", _TIMESTAMP))
    op.create_check_constraint("priority_bounded", "jobs", "priority BETWEEN 0 AND 9")
    op.create_index(
        "ix_jobs_next",
        "jobs",
        [sa.text("priority DESC"), "id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index("ix_jobs_labels", "jobs", ["labels"], postgresql_using="gin")
    op.execute(
        f"""
        CREATE FUNCTION check_job_transition() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.state, NEW.state) IN ({_LEGAL}) THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION 'a job cannot go from % to %', OLD.state, NEW.state
                USING ERRCODE = 'check_violation', CONSTRAINT = 'job_transition';
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER job_transition BEFORE UPDATE OF state ON jobs FOR EACH ROW"
        " WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION check_job_transition()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER IF EXISTS job_transition ON jobs")
    op.execute("DROP FUNCTION IF EXISTS check_job_transition()")
    op.drop_index("ix_jobs_labels", "jobs")
    op.drop_index("ix_jobs_next", "jobs")
    op.drop_constraint(op.f("ck_jobs_priority_bounded"), "jobs")
    for name in ("claimed_at", "queued_at", "max_pending_s", "max_runtime_s", "priority"):
        op.drop_column("jobs", name)
    # The earlier version has no pause: paused jobs are queued, pausing jobs keep running.
    op.execute("UPDATE jobs SET state = 'queued' WHERE state = 'paused'")
    op.execute("UPDATE jobs SET state = 'running' WHERE state = 'pausing'")
    _set_states(*_BEFORE)


def _set_states(known: str, leased: str) -> None:
    for name in ("state_known", "lease_while_worked_on"):
        op.drop_constraint(op.f(f"ck_jobs_{name}"), "jobs")
    op.create_check_constraint("state_known", "jobs", f"state IN ({known})")
    op.create_check_constraint(
        "lease_while_worked_on",
        "jobs",
        f"(state IN ({leased})) = (lease_owner IS NOT NULL) AND "
        "(lease_owner IS NULL) = (lease_expires_at IS NULL)",
    )
