"""`intraslice migrate`: bring the database's schema to a revision, and report what was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import reported_errors
from app.cli.exit_codes import ExitCode
from app.cli.service import print_advice, process_settings
from app.domain.errors import MigrationError, SchemaError
from app.telemetry.outages import unreported

if TYPE_CHECKING:
    from app.adapters.database.migrate import MigrationPlan
    from app.domain.schema import Schema
    from app.settings import Settings


def register(app: typer.Typer) -> None:
    """Add `migrate` to the command line."""
    app.command()(migrate)


def migrate(
    to: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="Revision to upgrade or downgrade to, such as 0012.",
            show_default="this version's",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Allow a downgrade that drops data.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show the schema's state and change nothing.")
    ] = False,
) -> None:
    """Upgrade the database to this version's schema, or change it to another revision.

    A newer schema stays as it is. Exit code 1 if this version does not work with it.
    """
    settings = process_settings()
    print_advice(settings)
    with reported_errors(), unreported():
        if show:
            _show(settings)
            return
        try:
            _migrate(settings, to, drop_data=yes)
        except (MigrationError, SchemaError) as error:
            typer.echo(f"error: {error}", err=True)
            code = ExitCode.FAILED if isinstance(error, SchemaError) else ExitCode.BAD_INPUT
            raise typer.Exit(code) from None


def _migrate(settings: Settings, to: str | None, *, drop_data: bool) -> None:
    from app.adapters.database.migrate import HEAD, migrate
    from app.adapters.process_state import state_file

    with state_file(settings.data_dir, "migrate") as state:
        state.write()
        plan = migrate(settings, to or HEAD, drop_data=drop_data)
    typer.echo(_outcome(plan))
    for dropped in plan.drops:
        typer.echo(f"dropped: {dropped}")


def _outcome(plan: MigrationPlan) -> str:
    """Return what the plan did, as one line."""
    from app.adapters.database.migrate import head_revision

    before, code = plan.schema.revision, head_revision()
    if plan.schema.is_newer_than(code):
        return (
            f"the schema is at {before}, newer than {code} of this version, which works with it;"
            " nothing was changed"
        )
    needed = "" if plan.target == code else f"; this version needs {code}"
    if not plan.steps:
        return f"the schema is already at {before}{needed}"
    count = f"{len(plan.steps)} migration{'s' if len(plan.steps) > 1 else ''}"
    if before is None:
        return f"the schema was created, is at {plan.target} now ({count}){needed}"
    names = ", ".join(step.name for step in plan.steps)
    done = f"downgrade, {count} reverted" if plan.is_downgrade else count
    return f"the schema was at {before}, is at {plan.target} now ({done}: {names}){needed}"


def _show(settings: Settings) -> None:
    from app.adapters.database.migrate import current_schema, head_revision, plan_migration

    schema, code = current_schema(settings), head_revision()
    typer.echo(f"schema        {schema.revision or 'none'}")
    typer.echo(f"this version  {code}")
    typer.echo(f"works with    {_window(schema)}")
    try:
        pending = plan_migration(schema, "head").steps
    except SchemaError as error:
        typer.echo(f"problem       {error}")
        return
    for step in pending:
        typer.echo(f"pending       {step.name}")


def _window(schema: Schema) -> str:
    if schema.revision is None:
        return "no version"
    oldest = schema.oldest_code or schema.revision
    return f"versions at {oldest}" + ("" if oldest == schema.revision else f" to {schema.revision}")
