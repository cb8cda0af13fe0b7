"""`intraslice submit` and `validate`: jobs from settings or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import panels
from app.cli.errors import invalid_settings, reported_errors
from app.cli.exit_codes import TABLE
from app.cli.options import RatioOption, TargetBytesOption, TargetParamsOption
from app.cli.quantities import quantity
from app.cli.remote.following import download_files, finish, follow
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.requests import is_uploaded, labels, model_source, read_body
from app.cli.remote.tables import print_json, print_state
from app.cli.settings_options import SettingsOptions, takes_job_settings
from app.domain.job import DEFAULT_PRIORITY
from app.domain.lifecycle import State
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import ConfigurationError
from intraslice_core.files import require_writable_directory

if TYPE_CHECKING:
    from app.api.schemas import JobCreate
    from intraslice_client import Client

_Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        rich_help_panel=panels.MODEL,
        help="Model to compress: hub:ORG/NAME[@REVISION], package:NAME, upload:ID, path:DIR on the "
        "workers' file system, or a local directory, which is uploaded.",
    ),
]
_File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        rich_help_panel=panels.MODEL,
        help="JSON file with the request body of POST /v1/jobs, instead of MODEL and settings.",
        show_default="none",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (submit, validate):
        app.command(rich_help_panel=panels.ON_A_SERVICE, epilog=TABLE)(command)


@takes_service_options
@takes_job_settings
def submit(  # noqa: PLR0913 (typer reads the options from the signature)
    *,
    model: _Model = None,
    file: _File = None,
    ratio: RatioOption = None,
    target_params: TargetParamsOption = None,
    target_bytes: TargetBytesOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=panels.JOB,
            help="Name of the job, by which `list` shows it; stored as the label name.",
            show_default="none",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            rich_help_panel=panels.JOB,
            help="Label of the job; repeatable.",
            show_default="none",
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=9,
            rich_help_panel=panels.JOB,
            help="Priority, 0 to 9; queued jobs with a higher one start first.",
            show_default=str(DEFAULT_PRIORITY),
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=panels.JOB,
            help="Submitting again with the same key returns the same job.",
            show_default="a new key",
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            "--watch",
            rich_help_panel=panels.OUTPUT,
            help="Show the progress until the job ends.",
        ),
    ] = False,
    download_to: Annotated[
        Path | None,
        typer.Option(
            "--download",
            metavar="DIR",
            rich_help_panel=panels.OUTPUT,
            help="Wait for the job, then download its files into DIR.",
            show_default="no download",
        ),
    ] = None,
    options: SettingsOptions,
    link: Link,
) -> None:
    """Queue a compression job; its id is printed to stdout."""
    is_long = wait or download_to is not None or is_uploaded(model)
    with reported_errors():
        require_writable_directory(download_to, "--download")
    with link.client(is_long=is_long) as client:
        size = _size(ratio, target_params, target_bytes)
        request = _request(client, model, file, size, options)
        named = {} if name is None else {"name": name}
        job = client.jobs.create(
            request.model,
            request.compression,
            evaluation=request.evaluation,
            labels={**request.labels, **labels(label), **named},
            priority=priority if priority is not None else request.priority,
            max_runtime_s=request.max_runtime_s,
            max_pending_s=request.max_pending_s,
            idempotency_key=idempotency_key,
        )
        if not (wait or download_to):
            print_state(job, as_json=link.as_json)
            return
        typer.echo(job.id, err=True)
        finished = follow(client, job.id)
        if finished.state is State.SUCCEEDED and download_to is not None:
            download_files(client, job.id, download_to)
        finish(finished, as_json=link.as_json)


@takes_service_options
@takes_job_settings
def validate(
    *,
    model: _Model = None,
    file: _File = None,
    ratio: RatioOption = None,
    target_params: TargetParamsOption = None,
    target_bytes: TargetBytesOption = None,
    options: SettingsOptions,
    link: Link,
) -> None:
    """Estimate size, memory, time and targets of a job without queueing it."""
    with link.client(is_long=is_uploaded(model)) as client:
        size = _size(ratio, target_params, target_bytes)
        request = _request(client, model, file, size, options)
        validation = client.jobs.validate(
            request.model, request.compression, evaluation=request.evaluation
        )
    if link.as_json:
        print_json(validation)
        return
    from app.cli.remote.summaries import print_validation

    print_validation(validation, request.compression.target)


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
