"""`intraslice sweeps`: sweeps of a service; `intraslice sweep` needs none."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.exit_codes import TABLE
from app.cli.ratios import ratios as read_ratios
from app.cli.refusals import refuse_settings
from app.cli.remote.jobs import PANEL
from app.cli.remote.link import Link, speaks
from app.cli.remote.requests import labels, model_source
from app.cli.remote.tables import age, print_json, print_sweep, print_table
from app.cli.settings_options import SettingsOptions, takes_settings
from intraslice_core.config import CompressionSettings

commands = typer.Typer(
    help="Sweeps of a service: one model at several ratios.", no_args_is_help=True
)
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Its id.")]


def register(app: typer.Typer) -> None:
    """Add `sweeps` to the command line."""
    app.add_typer(commands, name="sweeps", rich_help_panel=PANEL, epilog=TABLE)


@commands.command()
@speaks
@takes_settings
def create(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Named as for submit.")],
    ratios: Annotated[
        str,
        typer.Option(metavar="RATIOS", help="START:STOP:STEP, as 0.1:0.5:0.1, or 0.1,0.25,0.4."),
    ],
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of all its jobs; repeatable.")
    ] = None,
    options: SettingsOptions,
    link: Link,
) -> None:
    """Queue a job for each ratio."""
    with link.client() as client:
        wanted = read_ratios(ratios, "--ratios")
        with refuse_settings():
            settings = CompressionSettings.model_validate(options.compression())
            evaluation = options.evaluation()
        made = client.sweeps.create(
            model_source(client, model),
            wanted,
            settings,
            evaluation=evaluation,
            labels=labels(label),
        )
    if link.as_json:
        print_json(made)
    else:
        typer.echo(made.id)


@commands.command("list")
@speaks
def list_sweeps(*, link: Link) -> None:
    """List sweeps, newest first."""
    with link.client() as client:
        found = list(client.sweeps.list())
    if link.as_json:
        print_json(found)
        return
    rows = (
        (one.id, one.state, f"{one.progress.fraction:.0%}", one.model.ref, age(one.created_at))
        for one in found
    )
    print_table(("id", "state", "done", "model", "age"), rows)


@commands.command()
@speaks
def show(*, sweep: SweepArgument, link: Link) -> None:
    """Show a sweep's jobs, and which of their results no other one beats."""
    with link.client() as client:
        found = client.sweeps.get(sweep)
    if link.as_json:
        print_json(found)
    else:
        print_sweep(found)


@commands.command()
@speaks
def cancel(*, sweep: SweepArgument, link: Link) -> None:
    """Cancel all of its jobs that have not ended."""
    with link.client() as client:
        found = client.sweeps.cancel(sweep)
    if link.as_json:
        print_json(found)
    else:
        typer.echo(f"{found.id} is {found.state}", err=True)
