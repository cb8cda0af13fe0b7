"""Live progress of a job until it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from app.cli.exit_codes import ExitCode
from app.cli.remote.tables import print_job, print_json
from intraslice_core.progress import ProgressEvent

if TYPE_CHECKING:
    from app.domain.events import JobLive
    from app.domain.job import Job
    from intraslice_client import Client


def follow(client: Client, job_id: str) -> Job:
    """Show a progress bar until the job has ended; Ctrl-C leaves the job running."""
    from app.cli.progress_display import show_progress
    from app.domain.events import JobLive

    try:
        with show_progress() as show_event:
            for message in client.jobs.watch(job_id):
                if isinstance(message, JobLive):
                    event = _progress_event(message)
                    if event is not None:
                        show_event(event)
    except KeyboardInterrupt:
        typer.echo(f"the job keeps running; show it again: intraslice watch {job_id}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return client.jobs.get(job_id)


def finish(job: Job, *, as_json: bool) -> None:
    """Print a finished job; exit with code 1 if it did not succeed."""
    if as_json:
        print_json(job)
    else:
        print_job(job)
    if job.state != "succeeded":
        raise typer.Exit(ExitCode.FAILED)


def _progress_event(live: JobLive) -> ProgressEvent | None:
    if live.stage is None or live.progress is None:
        return None
    return ProgressEvent(
        stage=live.stage,
        message=live.progress.message,
        fraction=live.progress.fraction,
        eta_seconds=live.progress.eta_seconds,
    )
