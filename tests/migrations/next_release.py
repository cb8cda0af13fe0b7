"""A later version's migrations: the next one expands the schema, the one after it contracts it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from alembic import command

from app.adapters.database.engine import migration_transaction
from app.adapters.database.migrate import alembic_config, head_revision
from app.settings import Settings

_SCRIPT = '''"""{title}."""

from alembic import op

revision = "{revision}"
down_revision = "{previous}"
downgrade_drops = None


def upgrade() -> None:
    op.execute("{statement}")


def downgrade() -> None: ...
'''


@dataclass(frozen=True)
class NextRelease:
    """A copy of this tree's migrations with two more."""

    directory: Path
    expanded: str
    """Revision that adds a column."""
    contracted: str
    """Revision that works with code from `expanded` on."""

    def migrate(self, settings: Settings, revision: str) -> None:
        config = alembic_config()
        config.set_main_option("script_location", str(self.directory))
        with migration_transaction(settings.database_url) as transaction:
            config.attributes["connection"] = transaction
            command.upgrade(config, revision)


def write_next_release(place: Path) -> NextRelease:
    directory = place / "migrations"
    shutil.copytree(str(files("migrations")), directory)
    head = head_revision()
    expanded, contracted = (f"{int(head) + step:04}" for step in (1, 2))
    _write(directory, expanded, head, "ALTER TABLE jobs ADD COLUMN later text")
    raised = f"UPDATE schema_window SET oldest_revision = '{expanded}'"
    _write(directory, contracted, expanded, raised)
    return NextRelease(directory, expanded, contracted)


def _write(directory: Path, revision: str, previous: str, statement: str) -> None:
    script = _SCRIPT.format(
        title="Later migration", revision=revision, previous=previous, statement=statement
    )
    (directory / "versions" / f"{revision}_later.py").write_text(script)
