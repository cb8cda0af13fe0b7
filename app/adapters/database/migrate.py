"""Migrations, run from the installed `migrations` package in one transaction.

Alembic is imported where it is used: it takes a sixth of the API's whole start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from app.adapters.database.engine import Database, Transaction, migration_transaction
from app.adapters.database.schema import read_schema
from app.domain.errors import MigrationError, SchemaError, ServiceError
from app.domain.schema import Schema
from app.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

_REASONS = {
    "42501": "the database's role may not change the schema: make it the owner of the database",
    "40P01": "a transaction of the service and the migration waited for each other: run it again",
    "55P03": "a table of the migration stayed in use (lock timeout after 5 s): run it again",
    "57014": "the migration took longer than 120 s: run it again while the service is stopped",
}
"""Expected failures by the server's error code."""
HEAD = "head"
BASE = "base"
"""Target of a downgrade that removes every table."""


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One revision of the schema and the script that creates it."""

    revision: str
    name: str
    """Name of its file: `0014_schema_window`."""
    downgrade_drops: str | None
    """Data that its downgrade drops; None if it drops nothing that an upgrade does not restore."""


@dataclass(frozen=True, kw_only=True)
class MigrationPlan:
    """Migrations that bring a schema to a revision, in the order in which they run."""

    schema: Schema
    target: str | None
    """Revision after the plan; None for no tables."""
    steps: tuple[Migration, ...] = ()
    is_downgrade: bool = False

    @property
    def drops(self) -> list[str]:
        """Data that the plan drops, by migration."""
        if not self.is_downgrade:
            return []
        return [
            f"{step.downgrade_drops} ({step.name})" for step in self.steps if step.downgrade_drops
        ]


def migrate(settings: Settings, target: str = HEAD, *, drop_data: bool = False) -> MigrationPlan:
    """Bring the schema to a revision and return what was done; several processes may call it.

    A newer schema that works with this code stays as it is.

    Raises:
        SchemaError: if the schema is of another version that does not work with this code.
        MigrationError: if this code has no such revision, if a downgrade would drop data and
            `drop_data` is not set, or if the server rejected a migration for one of `_REASONS`.
        DatabaseUnavailableError: if the server does not answer.
    """
    try:
        with migration_transaction(settings.database_url) as transaction:
            plan = plan_migration(read_schema(transaction), target)
            if plan.drops and not drop_data:
                raise MigrationError(
                    f"a downgrade from {plan.schema.revision} to {target} drops"
                    f" {'; '.join(plan.drops)}: back up the database, then repeat with --yes"
                )
            _run(plan, transaction)
    except (DBAPIError, ServiceError) as error:
        reason = _REASONS.get(_sqlstate(error))
        if reason is None:
            raise
        raise MigrationError(f"{reason}; nothing was changed") from error
    return plan


def _sqlstate(error: Exception) -> str:
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    return str(getattr(getattr(cause, "orig", None), "sqlstate", ""))


def upgrade(settings: Settings, revision: str = HEAD) -> MigrationPlan:
    """Migrate the database to a revision; safe to run from several processes at once."""
    return migrate(settings, revision)


def downgrade(settings: Settings, revision: str) -> MigrationPlan:
    """Revert migrations down to a revision, whatever they drop."""
    return migrate(settings, revision, drop_data=True)


def current_schema(settings: Settings) -> Schema:
    database = Database(settings.database_url)
    try:
        return database.schema()
    finally:
        database.close()


def plan_migration(schema: Schema, target: str) -> MigrationPlan:
    """Return the steps from a schema to a revision of this code.

    Raises:
        SchemaError: if the schema is of another version and must stay as it is.
        MigrationError: if this code has no such revision.
    """
    revisions = [migration.revision for migration in migrations()]
    if schema.revision is not None and schema.revision not in revisions:
        return _foreign_plan(schema, target)
    goal = len(revisions) if target == HEAD else _position(target, revisions)
    start = 0 if schema.revision is None else _position(schema.revision, revisions)
    steps = migrations()[min(start, goal) : max(start, goal)]
    is_downgrade = goal < start
    return MigrationPlan(
        schema=schema,
        target=revisions[goal - 1] if goal else None,
        steps=steps[::-1] if is_downgrade else steps,
        is_downgrade=is_downgrade,
    )


def _foreign_plan(schema: Schema, target: str) -> MigrationPlan:
    """Return an empty plan for a schema of another version that this code can use.

    Raises:
        SchemaError: if the code cannot use it, or another revision was requested.
    """
    problem = schema.problem(head_revision())
    if problem is not None:
        raise SchemaError(problem)
    if target not in (HEAD, schema.revision):
        raise SchemaError(
            f"The schema is at {schema.revision}, which only the version that created it can"
            f" change: run its intraslice migrate --to {target}"
        )
    return MigrationPlan(schema=schema, target=schema.revision)


def _position(revision: str, revisions: list[str]) -> int:
    if revision == BASE:
        return 0
    if revision not in revisions:
        raise MigrationError(
            f"revision {revision!r} is unknown: this version has {revisions[0]} to {revisions[-1]}"
        )
    return revisions.index(revision) + 1


def _run(plan: MigrationPlan, transaction: Transaction) -> None:
    from alembic import command

    if not plan.steps:
        return
    config = alembic_config()
    config.attributes["connection"] = transaction
    change = command.downgrade if plan.is_downgrade else command.upgrade
    change(config, plan.target or BASE)


@lru_cache(maxsize=1)
def migrations() -> tuple[Migration, ...]:
    """Return this code's migrations, the first one first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return tuple(
        Migration(
            revision=script.revision,
            name=Path(script.path).stem,
            downgrade_drops=script.module.downgrade_drops,
        )
        for script in reversed(list(scripts))
    )


def head_revision() -> str:
    """Return the revision of the schema that this code creates."""
    return migrations()[-1].revision


def alembic_config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
