"""`intraslice sweeps`: sweeps on a service; `intraslice sweep` runs on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.errors import invalid_settings
from app.cli.exit_codes import TABLE
from app.cli.methods import methods as read_methods
from app.cli.panels import AMOUNT, JOB, MODEL, ON_A_SERVICE, CommandLine
from app.cli.ratios import ratios as read_ratios
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.requests import labels, model_source
from app.cli.remote.tables import age, print_json, print_sweep, print_table
from app.cli.settings_options import SettingsOptions, takes_job_settings
from intraslice_core.config import CompressionSettings

commands = CommandLine(
    help="Sweeps on a service: one model compressed at several ratios.", no_args_is_help=True
)
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Id of the sweep.")]
RatiosOption = Annotated[
    str,
    typer.Option(
        metavar="RATIOS",
        rich_help_panel=AMOUNT,
        help="Fractions of the parameters to remove, each in [0, 1): a list such as "
        "0.1,0.25,0.4, or START:STOP:STEP such as 0.1:0.5:0.1.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add `sweeps` to the command line."""
    app.add_typer(commands, name="sweeps", rich_help_panel=ON_A_SERVICE, epilog=TABLE)


@commands.command()
@takes_service_options
@takes_job_settings
def create(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            rich_help_panel=MODEL,
            help="Model to compress, in the form of `intraslice submit`.",
        ),
    ],
    ratios: RatiosOption,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD,…",
            rich_help_panel=AMOUNT,
            help="Methods to compare in place of --method, separated by commas; repeatable. Queues "
            "one job for each method and ratio, at most 40.",
            show_default="that of --method",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            rich_help_panel=JOB,
            help="Label of every job of the sweep; repeatable.",
        ),
    ] = None,
    options: SettingsOptions,
    link: Link,
) -> None:
    """Queue one job per method and ratio; the id of the sweep is printed to stdout."""
    with link.client() as client:
        ratio_list = read_ratios(ratios, "--ratios")
        method_list = read_methods(methods, "--methods")
        with invalid_settings():
            settings = CompressionSettings.model_validate(options.compression())
            evaluation = options.evaluation()
        sweep = client.sweeps.create(
            model_source(client, model),
            ratio_list,
            settings,
            methods=method_list or None,
            evaluation=evaluation,
            labels=labels(label),
        )
    if link.as_json:
        print_json(sweep)
    else:
        typer.echo(sweep.id)


@commands.command("list")
@takes_service_options
def list_sweeps(*, link: Link) -> None:
    """List sweeps, newest first."""
    with link.client() as client:
        sweeps = list(client.sweeps.list())
    if link.as_json:
        print_json(sweeps)
        return
    rows = (
        (
            sweep.id,
            sweep.labels.get("name"),
            sweep.state,
            f"{sweep.progress.fraction:.0%}",
            sweep.model.ref,
            age(sweep.created_at),
        )
        for sweep in sweeps
    )
    print_table(("id", "name", "state", "done", "model", "age"), rows)


@commands.command()
@takes_service_options
def show(*, sweep: SweepArgument, link: Link) -> None:
    """Show the jobs of a sweep and its Pareto front."""
    with link.client() as client:
        details = client.sweeps.get(sweep)
    if link.as_json:
        print_json(details)
    else:
        print_sweep(details)


@commands.command()
@takes_service_options
def add(*, sweep: SweepArgument, ratios: RatiosOption, link: Link) -> None:
    """Queue jobs for more ratios with the settings of a sweep; jobs that it has are skipped."""
    with link.client() as client:
        details = client.sweeps.add_ratios(sweep, read_ratios(ratios, "--ratios"))
    if link.as_json:
        print_json(details)
    else:
        typer.echo(f"{details.id} has {len(details.jobs)} jobs", err=True)


@commands.command()
@takes_service_options
def cancel(*, sweep: SweepArgument, link: Link) -> None:
    """Cancel all unfinished jobs of a sweep."""
    with link.client() as client:
        details = client.sweeps.cancel(sweep)
    if link.as_json:
        print_json(details)
    else:
        typer.echo(f"{details.id} is {details.state}", err=True)
