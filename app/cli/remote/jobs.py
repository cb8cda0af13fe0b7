"""`intraslice list`, `show`, `watch` and the other commands on jobs of a service."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from app.cli.errors import reported_errors
from app.cli.exit_codes import TABLE
from app.cli.panels import ON_A_SERVICE
from app.cli.remote.following import download_files, finish, follow, print_logs
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.requests import edited_labels, labels
from app.cli.remote.tables import (
    JOB_COLUMNS,
    job_rows,
    print_comparison,
    print_json,
    print_state,
    print_table,
)
from app.domain.job_log import LogLevel
from app.domain.lifecycle import State
from intraslice_core.files import require_writable_directory

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    commands = (show, watch, logs, edit, cancel, pause, resume, retry, delete, download, compare)
    for command in commands:
        app.command(rich_help_panel=ON_A_SERVICE, epilog=TABLE)(command)
    app.command("list", rich_help_panel=ON_A_SERVICE, epilog=TABLE)(list_jobs)


@takes_service_options
def list_jobs(
    *,
    state: Annotated[
        State | None, typer.Option(help="Show only jobs in this state.", show_default="all")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Show only jobs of this model name.", show_default="all")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Show only jobs of this sweep.", show_default="all")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Show only jobs with this label; repeatable.",
            show_default="all",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Largest number of jobs to show (1 or more).")
    ] = 20,
    link: Link,
) -> None:
    """List jobs with their names, sizes and results, newest first."""
    with link.client() as client:
        jobs = client.jobs.list(state=state, model=model, sweep=sweep, labels=labels(label))
        newest = list(islice(jobs, limit))
    if link.as_json:
        print_json(newest)
    elif newest:
        print_table(JOB_COLUMNS, job_rows(newest))
    else:
        typer.echo("no jobs match", err=True)


@takes_service_options
def show(*, job: JobArgument, link: Link) -> None:
    """Show a job and its result."""
    with link.client() as client:
        details = client.jobs.get(job)
    if link.as_json:
        print_json(details)
        return
    from app.cli.remote.summaries import print_job

    print_job(details)


@takes_service_options
def watch(*, job: JobArgument, link: Link) -> None:
    """Show the progress of a job until it ends; exit with code 1 if it does not succeed."""
    with link.client(is_long=True) as client:
        finish(follow(client, job), as_json=link.as_json)


@takes_service_options
def edit(
    *,
    job: JobArgument,
    name: Annotated[str | None, typer.Option(help="New name of the job.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Label to set; repeatable. Other labels stay."),
    ] = None,
    remove_label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Label to remove; repeatable. `name` removes the name."),
    ] = None,
    link: Link,
) -> None:
    """Change the name and the labels of a job, in any state."""
    with reported_errors():
        changes = edited_labels(name, label, remove_label)
    with link.client() as client:
        edited = client.jobs.edit(job, labels=changes)
    if link.as_json:
        print_json(edited)
        return
    for key, value in sorted(edited.labels.items()):
        typer.echo(f"{key}={value}")


@takes_service_options
def logs(
    *,
    job: JobArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with new lines until the job ends.")
    ] = False,
    level: Annotated[LogLevel, typer.Option(help="Least severe level to show.")] = LogLevel.DEBUG,
    link: Link,
) -> None:
    """Show the log of the engine process of a job; `--json` prints one JSON object per line."""
    with link.client(is_long=follow) as client:
        lines = client.jobs.logs(job, level=level, follow=follow)
        print_logs(lines, job, as_json=link.as_json)


@takes_service_options
def cancel(*, job: JobArgument, link: Link) -> None:
    """Cancel a job; a running job stops within a few seconds."""
    with link.client() as client:
        print_state(client.jobs.cancel(job), as_json=link.as_json)


@takes_service_options
def pause(*, job: JobArgument, link: Link) -> None:
    """Pause a job; `resume` continues from the last finished layer."""
    with link.client() as client:
        print_state(client.jobs.pause(job), as_json=link.as_json)


@takes_service_options
def resume(*, job: JobArgument, link: Link) -> None:
    """Queue a paused job again."""
    with link.client() as client:
        print_state(client.jobs.resume(job), as_json=link.as_json)


@takes_service_options
def retry(*, job: JobArgument, link: Link) -> None:
    """Queue a failed or cancelled job again; finished layers are kept."""
    with link.client() as client:
        print_state(client.jobs.retry(job), as_json=link.as_json)


@takes_service_options
def delete(*, job: JobArgument, link: Link) -> None:
    """Delete a finished job and its files."""
    with link.client() as client:
        client.jobs.delete(job)
    typer.echo(f"{job} was deleted", err=True)


@takes_service_options
def download(
    *,
    job: JobArgument,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Target directory; created if missing.")
    ],
    link: Link,
) -> None:
    """Download the files of a job; verify checksums and resume interrupted downloads."""
    with reported_errors():
        require_writable_directory(directory, "DIR")
    with link.client(is_long=True) as client:
        paths = download_files(client, job, directory)
    if link.as_json:
        typer.echo("\n".join(str(path) for path in paths))
    else:
        typer.echo(f"downloaded and verified {len(paths)} files in {directory}")


@takes_service_options
def compare(
    *,
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids of 2 to 20 jobs.")],
    link: Link,
) -> None:
    """Compare the settings and results of jobs."""
    with link.client() as client:
        comparison = client.compare(*jobs)
    if link.as_json:
        print_json(comparison)
    else:
        print_comparison(comparison)
