"""`intraslice submit`, `watch`, `list` and the other commands about jobs of a service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.exit_codes import TABLE
from app.cli.quantities import quantity
from app.cli.refusals import refuse_settings
from app.cli.remote.following import finish, follow
from app.cli.remote.link import Link, speaks
from app.cli.remote.requests import labels, model_source, read_body
from app.cli.remote.tables import (
    JOB_COLUMNS,
    job_rows,
    print_comparison,
    print_job,
    print_json,
    print_table,
)
from app.cli.settings_options import SettingsOptions, takes_settings
from app.domain.lifecycle import State
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import ConfigurationError

if TYPE_CHECKING:
    from app.api.schemas import JobCreate
    from app.client import Client
    from app.domain.job import Job

PANEL = "On a service"

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id.")]
_Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="hub:ORG/NAME[@REVISION], package:NAME, upload:ID, path:PLACE as the workers see it, "
        "or a directory here, which is sent.",
    ),
]
_File = Annotated[
    Path | None,
    typer.Option("--file", help="The whole request as JSON, as POST /v1/jobs takes it."),
]
_Ratio = Annotated[float | None, typer.Option(help="Fraction of the parameters to remove.")]
_TargetParams = Annotated[
    str | None, typer.Option(metavar="N", help="Parameters of the result: 100M, 1.2G, …")
]
_TargetBytes = Annotated[
    str | None, typer.Option(metavar="N", help="Bytes of the result's weights: 200M, 1.2G, …")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (submit, validate, show, watch, cancel, pause, resume, retry, delete, download):
        app.command(rich_help_panel=PANEL, epilog=TABLE)(command)
    app.command("list", rich_help_panel=PANEL, epilog=TABLE)(list_jobs)
    app.command(rich_help_panel=PANEL, epilog=TABLE)(compare)


@speaks
@takes_settings
def submit(  # noqa: PLR0913 (typer reads the options from the signature)
    *,
    model: _Model = None,
    file: _File = None,
    ratio: _Ratio = None,
    target_params: _TargetParams = None,
    target_bytes: _TargetBytes = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="To find it by; repeatable.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=9, help="Of queued jobs the highest goes first.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A second submit with it finds the first one's job.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", "--watch", help="Show its progress to its end.")
    ] = False,
    download_to: Annotated[
        Path | None,
        typer.Option("--download", metavar="DIR", help="Wait, and fetch the files there."),
    ] = None,
    options: SettingsOptions,
    link: Link,
) -> None:
    """Queue a compression; its id goes to stdout."""
    with link.client() as client:
        size = _size(ratio, target_params, target_bytes)
        request = _request(client, model, file, size, options)
        job = client.jobs.create(
            request.model,
            request.compression,
            evaluation=request.evaluation,
            labels={**request.labels, **labels(label)},
            priority=priority if priority is not None else request.priority,
            max_runtime_s=request.max_runtime_s,
            max_pending_s=request.max_pending_s,
            idempotency_key=idempotency_key,
        )
        if not (wait or download_to):
            _tell(job, link)
            return
        typer.echo(job.id, err=True)
        ended = follow(client, job.id)
        if ended.state is State.SUCCEEDED and download_to is not None:
            _download(client, job.id, download_to)
        finish(ended, as_json=link.as_json)


@speaks
@takes_settings
def validate(
    *,
    model: _Model = None,
    file: _File = None,
    ratio: _Ratio = None,
    target_params: _TargetParams = None,
    target_bytes: _TargetBytes = None,
    options: SettingsOptions,
    link: Link,
) -> None:
    """Ask what a job would make and take: size, memory, time, targets. Nothing is queued."""
    with link.client() as client:
        size = _size(ratio, target_params, target_bytes)
        request = _request(client, model, file, size, options)
        found = client.jobs.validate(
            request.model, request.compression, evaluation=request.evaluation
        )
        if link.as_json:
            print_json(found)
            return
        shown = found.model_dump(mode="json")
        warnings = shown.pop("warnings", [])
        print_table(("", ""), _facts(shown))
        for warning in warnings:
            typer.echo(f"warning: {warning['message']}", err=True)


@speaks
def list_jobs(
    *,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    model: Annotated[str | None, typer.Option(help="Only those of this model's name.")] = None,
    sweep: Annotated[str | None, typer.Option(help="Only those of this sweep.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only those with it; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    link: Link,
) -> None:
    """List jobs, newest first."""
    with link.client() as client:
        found: list[Job] = []
        for job in client.jobs.list(state=state, model=model, sweep=sweep, labels=labels(label)):
            found.append(job)
            if len(found) == limit:
                break
    if link.as_json:
        print_json(found)
    else:
        print_table(JOB_COLUMNS, job_rows(found))


@speaks
def show(*, job: JobArgument, link: Link) -> None:
    """Show a job."""
    with link.client() as client:
        found = client.jobs.get(job)
    if link.as_json:
        print_json(found)
    else:
        print_job(found)


@speaks
def watch(*, job: JobArgument, link: Link) -> None:
    """Show a job's progress to its end; the exit code says how it ended."""
    with link.client() as client:
        finish(follow(client, job), as_json=link.as_json)


@speaks
def cancel(*, job: JobArgument, link: Link) -> None:
    """Stop a job; a running one takes a few seconds."""
    with link.client() as client:
        _tell(client.jobs.cancel(job), link)


@speaks
def pause(*, job: JobArgument, link: Link) -> None:
    """Put a job aside; it goes on from there when it is resumed."""
    with link.client() as client:
        _tell(client.jobs.pause(job), link)


@speaks
def resume(*, job: JobArgument, link: Link) -> None:
    """Queue a paused job again."""
    with link.client() as client:
        _tell(client.jobs.resume(job), link)


@speaks
def retry(*, job: JobArgument, link: Link) -> None:
    """Queue a failed or cancelled job again; it keeps finished layers."""
    with link.client() as client:
        _tell(client.jobs.retry(job), link)


@speaks
def delete(*, job: JobArgument, link: Link) -> None:
    """Forget a job that has ended, and its files."""
    with link.client() as client:
        client.jobs.delete(job)
    typer.echo(f"{job} is deleted", err=True)


@speaks
def download(
    *,
    job: JobArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is not there.")],
    link: Link,
) -> None:
    """Fetch a job's files, each checked; what was broken off goes on."""
    with link.client() as client:
        paths = _download(client, job, directory)
    if link.as_json:
        typer.echo("\n".join(str(path) for path in paths))
    else:
        typer.echo(f"{len(paths)} files are in {directory}, as they were published")


@speaks
def compare(
    *,
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="Two to twenty ids.")],
    link: Link,
) -> None:
    """Show jobs side by side: what they were asked for and what came of it."""
    with link.client() as client:
        found = client.compare(*jobs)
    if link.as_json:
        print_json(found)
    else:
        print_comparison(found)


def _size(ratio: float | None, params: str | None, size: str | None) -> dict[str, Any]:
    found = {
        "ratio": ratio,
        "target_params": quantity(params, "--target-params"),
        "target_bytes": quantity(size, "--target-bytes"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _request(
    client: Client,
    model: str | None,
    file: Path | None,
    size: dict[str, Any],
    options: SettingsOptions,
) -> JobCreate:
    """From a file, or from the options."""
    from app.api.schemas import JobCreate

    if (model is None) == (file is None):
        raise ConfigurationError("name a model or give --file, one of them", field="model")
    if file is not None:
        return read_body(file, JobCreate)
    assert model is not None
    with refuse_settings():
        compression = CompressionConfig.model_validate({**size, **options.compression()})
        evaluation = options.evaluation()
    return JobCreate(
        model=model_source(client, model), compression=compression, evaluation=evaluation
    )


def _download(client: Client, job_id: str, directory: Path) -> tuple[Path, ...]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        return client.jobs.download(
            job_id,
            directory,
            on_progress=lambda there, total: bar.update(task, completed=there, total=total),
        )


def _tell(job: Job, link: Link) -> None:
    if link.as_json:
        print_json(job)
        return
    typer.echo(job.id)
    typer.echo(f"{job.state}", err=True)


def _facts(found: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in found.items():
        shown = f"{prefix}{name}"
        if isinstance(value, dict):
            rows += _facts(value, f"{shown}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, one in enumerate(value):
                rows += _facts(one, f"{shown}[{number}].")
        elif value not in (None, [], "validation"):
            rows.append((shown, f"{value:,}" if isinstance(value, int) else value))
    return rows
