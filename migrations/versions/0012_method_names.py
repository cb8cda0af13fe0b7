"""Rename the compression methods in stored jobs, sweeps and measured rates.

`paper` becomes `intraslice`, the name of the published method; what was `intraslice` becomes
`intraslice_plus`. The order of the two steps matters: each frees the name that the next one takes.
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

downgrade_drops = None

_UP = (("intraslice", "intraslice_plus"), ("paper", "intraslice"))
_DOWN = (("intraslice", "paper"), ("intraslice_plus", "intraslice"))


def _rename(old: str, new: str) -> None:
    for table in ("jobs", "sweeps"):
        op.execute(
            f"UPDATE {table} SET compression = jsonb_set(compression, '{{method}}', '\"{new}\"') "
            f"WHERE compression ->> 'method' = '{old}'"
        )
    for path in ("{method}", "{config,method}"):
        op.execute(
            f"UPDATE jobs SET report = jsonb_set(report, '{path}', '\"{new}\"', false) "
            f"WHERE report #>> '{path}' = '{old}'"
        )
    op.execute(f"UPDATE rates SET method = '{new}' WHERE method = '{old}'")


def _set_report_version(version: int) -> None:
    op.execute(
        f"UPDATE jobs SET report = jsonb_set(report, '{{schema_version}}', '{version}') "
        "WHERE jsonb_typeof(report) = 'object' AND report ? 'method'"
    )


def _lock() -> None:
    # A job that is read between the two steps would be run by the wrong method.
    op.execute("LOCK TABLE jobs, sweeps, rates IN ACCESS EXCLUSIVE MODE")


def upgrade() -> None:
    _lock()
    for old, new in _UP:
        _rename(old, new)
    _set_report_version(2)


def downgrade() -> None:
    _lock()
    for old, new in _DOWN:
        _rename(old, new)
    _set_report_version(1)
