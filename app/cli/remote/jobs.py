"""`intraslice submit`, `watch`, `list` and the other job commands of a service."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import invalid_settings
from app.cli.exit_codes import TABLE
from app.cli.quantities import quantity
from app.cli.remote.following import finish, follow
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.requests import labels, model_source, read_body
from app.cli.remote.tables import (
    JOB_COLUMNS,
    job_rows,
    print_comparison,
    print_job,
    print_json,
    print_table,
)
from app.cli.settings_options import SettingsOptions, takes_job_settings
from app.domain.job import DEFAULT_PRIORITY
from app.domain.lifecycle import State
from intraslice_core.config import DEFAULT_RATIO, CompressionConfig
from intraslice_core.errors import ConfigurationError
from intraslice_core.files import require_writable_directory

if TYPE_CHECKING:
    from app.api.schemas import JobCreate
    from app.domain.job import Job
    from intraslice_client import Client

PANEL = "Commands on a service"

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]
_Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Model to compress: hub:ORG/NAME[@REVISION], package:NAME, upload:ID, path:DIR on the "
        "workers' file system, or a local directory, which is uploaded.",
    ),
]
_File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="JSON file with the request body of POST /v1/jobs, instead of MODEL and settings.",
    ),
]
_Ratio = Annotated[
    float | None,
    typer.Option(
        help=f"Fraction of the compressible parameters to remove, in [0, 1).  [default: "
        f"{DEFAULT_RATIO}, unless a target is given]"
    ),
]
_TargetParams = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Target number of parameters, such as 100M or 1.2G; instead of --ratio."
    ),
]
_TargetBytes = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Target size of the weights in bytes, such as 200M or 1.2G; instead of --ratio.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (submit, validate, show, watch, cancel, pause, resume, retry, delete, download):
        app.command(rich_help_panel=PANEL, epilog=TABLE)(command)
    app.command("list", rich_help_panel=PANEL, epilog=TABLE)(list_jobs)
    app.command(rich_help_panel=PANEL, epilog=TABLE)(compare)


@takes_service_options
@takes_job_settings
def submit(  # noqa: PLR0913 (typer reads the options from the signature)
    *,
    model: _Model = None,
    file: _File = None,
    ratio: _Ratio = None,
    target_params: _TargetParams = None,
    target_bytes: _TargetBytes = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label of the job; repeatable.")
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=9,
            help="Priority, 0 to 9; queued jobs with a higher one start first.  "
            f"[default: {DEFAULT_PRIORITY}]",
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            help="Submitting again with the same key returns the same job.  [default: a new key]"
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", "--watch", help="Show the progress until the job ends.")
    ] = False,
    download_to: Annotated[
        Path | None,
        typer.Option(
            "--download", metavar="DIR", help="Wait for the job, then download its files into DIR."
        ),
    ] = None,
    options: SettingsOptions,
    link: Link,
) -> None:
    """Queue a compression job; its id is printed to stdout."""
    with link.client() as client:
        require_writable_directory(download_to, "--download")
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
            _print_state(job, link)
            return
        typer.echo(job.id, err=True)
        finished = follow(client, job.id)
        if finished.state is State.SUCCEEDED and download_to is not None:
            _download(client, job.id, download_to)
        finish(finished, as_json=link.as_json)


@takes_service_options
@takes_job_settings
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
    """Estimate size, memory, time and targets of a job without queueing it."""
    with link.client() as client:
        size = _size(ratio, target_params, target_bytes)
        request = _request(client, model, file, size, options)
        validation = client.jobs.validate(
            request.model, request.compression, evaluation=request.evaluation
        )
        if link.as_json:
            print_json(validation)
            return
        fields = validation.model_dump(mode="json")
        warnings = fields.pop("warnings", [])
        print_table(("", ""), _flattened(fields))
        for warning in warnings:
            typer.echo(f"warning: {warning['message']}", err=True)


@takes_service_options
def list_jobs(
    *,
    state: Annotated[
        State | None, typer.Option(help="Show only jobs in this state.  [default: all]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Show only jobs of this model name.  [default: all]")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Show only jobs of this sweep.  [default: all]")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Show only jobs with this label; repeatable."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs to show.")] = 20,
    link: Link,
) -> None:
    """List jobs, newest first."""
    with link.client() as client:
        jobs = client.jobs.list(state=state, model=model, sweep=sweep, labels=labels(label))
        newest = list(islice(jobs, limit))
    if link.as_json:
        print_json(newest)
    else:
        print_table(JOB_COLUMNS, job_rows(newest))


@takes_service_options
def show(*, job: JobArgument, link: Link) -> None:
    """Show a job."""
    with link.client() as client:
        details = client.jobs.get(job)
    if link.as_json:
        print_json(details)
    else:
        print_job(details)


@takes_service_options
def watch(*, job: JobArgument, link: Link) -> None:
    """Show the progress of a job until it ends; exit with code 1 if it does not succeed."""
    with link.client() as client:
        finish(follow(client, job), as_json=link.as_json)


@takes_service_options
def cancel(*, job: JobArgument, link: Link) -> None:
    """Cancel a job; a running job stops within a few seconds."""
    with link.client() as client:
        _print_state(client.jobs.cancel(job), link)


@takes_service_options
def pause(*, job: JobArgument, link: Link) -> None:
    """Pause a job; `resume` continues from the last finished layer."""
    with link.client() as client:
        _print_state(client.jobs.pause(job), link)


@takes_service_options
def resume(*, job: JobArgument, link: Link) -> None:
    """Queue a paused job again."""
    with link.client() as client:
        _print_state(client.jobs.resume(job), link)


@takes_service_options
def retry(*, job: JobArgument, link: Link) -> None:
    """Queue a failed or cancelled job again; finished layers are kept."""
    with link.client() as client:
        _print_state(client.jobs.retry(job), link)


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
    with link.client() as client:
        require_writable_directory(directory, "DIR")
        paths = _download(client, job, directory)
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


def _size(ratio: float | None, params: str | None, size: str | None) -> dict[str, Any]:
    sizes = {
        "ratio": ratio,
        "target_params": quantity(params, "--target-params"),
        "target_bytes": quantity(size, "--target-bytes"),
    }
    return {name: value for name, value in sizes.items() if value is not None}


def _request(
    client: Client,
    model: str | None,
    file: Path | None,
    size: dict[str, Any],
    options: SettingsOptions,
) -> JobCreate:
    """Build the request from a file or from the options."""
    from app.api.schemas import JobCreate

    if (model is None) == (file is None):
        raise ConfigurationError("give either MODEL or --file", field="model")
    if file is not None:
        return read_body(file, JobCreate)
    assert model is not None
    with invalid_settings():
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
            on_progress=lambda received, total: bar.update(task, completed=received, total=total),
        )


def _print_state(job: Job, link: Link) -> None:
    if link.as_json:
        print_json(job)
        return
    typer.echo(job.id)
    typer.echo(f"{job.state}", err=True)


def _flattened(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested fields as rows with dotted names."""
    rows: list[tuple[str, Any]] = []
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            rows += _flattened(value, f"{path}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                rows += _flattened(item, f"{path}[{index}].")
        elif value not in (None, [], "validation"):
            rows.append((path, _readable(value)))
    return rows


def _readable(value: Any) -> str:
    """Return a value as text: yes or no, thousands separated, four digits, lists joined."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_readable(item) for item in value)
    return str(value)
