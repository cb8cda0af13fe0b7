"""A job's progress, as it is told, until its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from app.cli.exit_codes import ExitCode
from app.cli.progress_display import show_progress
from app.cli.remote.tables import print_job, print_json
from intraslice_core.progress import ProgressEvent

if TYPE_CHECKING:
    from app.client import Client
    from app.domain.events import JobLive
    from app.domain.job import Job


def follow(client: Client, job_id: str) -> Job:
    """Show a bar until the job has ended; Ctrl-C leaves it to itself."""
    from app.domain.events import JobLive

    try:
        with show_progress() as tell:
            for message in client.jobs.watch(job_id):
                if isinstance(message, JobLive):
                    shown = _event(message)
                    if shown is not None:
                        tell(shown)
    except KeyboardInterrupt:
        typer.echo(f"the job goes on: intraslice watch {job_id}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return client.jobs.get(job_id)


def finish(job: Job, *, as_json: bool) -> None:
    """Print how a job ended; that it did not succeed is the exit code."""
    if as_json:
        print_json(job)
    else:
        print_job(job)
    if job.state != "succeeded":
        raise typer.Exit(ExitCode.FAILED)


def _event(live: JobLive) -> ProgressEvent | None:
    if live.stage is None or live.progress is None:
        return None
    return ProgressEvent(
        stage=live.stage,
        message=live.progress.message,
        fraction=live.progress.fraction,
        eta_seconds=live.progress.eta_seconds,
    )
