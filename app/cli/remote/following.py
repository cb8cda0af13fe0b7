"""Live progress of a job until it ends, and the download of its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.cli.exit_codes import ExitCode
from app.cli.remote.tables import print_json

if TYPE_CHECKING:
    from app.domain.events import JobLive
    from app.domain.job import Job
    from intraslice_client import Client
    from intraslice_core.progress import ProgressEvent


def follow(client: Client, job_id: str) -> Job:
    """Show a progress bar until the job has ended; Ctrl-C leaves the job running."""
    from app.cli.progress_display import show_progress
    from app.domain.events import JobLive

    state = ""
    try:
        with show_progress() as show_event:
            for message in client.jobs.watch(job_id):
                if not isinstance(message, JobLive):
                    continue
                event = _progress_event(message)
                if event is not None and message.state == "running":
                    show_event(event)
                elif message.state != state and message.state in _WAITING:
                    typer.echo(_WAITING[message.state], err=True)
                state = message.state
    except KeyboardInterrupt:
        typer.echo(f"the job keeps running; show it again: intraslice watch {job_id}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return client.jobs.get(job_id)


def finish(job: Job, *, as_json: bool) -> None:
    """Print a finished job; exit with code 1 if it did not succeed."""
    if as_json:
        print_json(job)
    else:
        from app.cli.remote.summaries import print_job

        print_job(job)
    if job.state != "succeeded":
        raise typer.Exit(ExitCode.FAILED)


def download_files(client: Client, job_id: str, directory: Path) -> tuple[Path, ...]:
    """Download the files of a job with a progress bar; return their paths."""
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


_WAITING = {
    "queued": "queued: waiting for a worker",
    "paused": "paused: `intraslice resume` continues it",
    "pausing": "pausing",
    "cancelling": "cancelling",
    "running": "starting",
}
"""Sentences for states without progress."""


def _progress_event(live: JobLive) -> ProgressEvent | None:
    from intraslice_core.progress import ProgressEvent

    if live.stage is None or live.progress is None:
        return None
    return ProgressEvent(
        stage=live.stage,
        message=live.progress.message,
        fraction=live.progress.fraction,
        layer=live.progress.layer,
        layers=live.progress.layers,
        eta_seconds=live.progress.eta_seconds,
        eta_seconds_low=live.progress.eta_seconds_low,
        eta_seconds_high=live.progress.eta_seconds_high,
    )
