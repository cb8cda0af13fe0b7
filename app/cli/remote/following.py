"""Live progress of a job until it ends, and the download of its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.cli.exit_codes import ExitCode
from app.cli.remote.tables import ordinal, print_json

if TYPE_CHECKING:
    from app.domain.events import JobLive
    from app.domain.job import Job
    from app.domain.job_log import LogLine
    from intraslice_client import Client
    from intraslice_core.progress import ProgressEvent


def follow(client: Client, job_id: str) -> Job:
    """Show a progress bar until the job has ended; Ctrl-C leaves the job running.

    While the job is queued, its place in the queue and the reason why it waits are shown.
    """
    from app.cli.progress_display import show_progress
    from app.domain.events import JobLive

    shown = ""
    try:
        with show_progress() as show_event:
            for message in client.jobs.watch(job_id):
                if not isinstance(message, JobLive):
                    continue
                event = _progress_event(message)
                if event is not None and message.state == "running":
                    show_event(event)
                    shown = ""
                elif (sentence := waiting_sentence(message)) not in ("", shown):
                    shown = sentence
                    typer.echo(sentence, err=True)
    except KeyboardInterrupt:
        typer.echo(f"the job keeps running; show it again: intraslice watch {job_id}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return client.jobs.get(job_id)


def print_logs(lines: Iterable[LogLine], job_id: str, *, as_json: bool) -> None:
    """Print log lines as they come; Ctrl-C ends the output and leaves the job running."""
    from app.domain.job_log import line_text

    try:
        for line in lines:
            typer.echo(line.model_dump_json() if as_json else line_text(line))
    except KeyboardInterrupt:
        typer.echo(f"the job keeps running; show more: intraslice logs {job_id}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None


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
    "paused": "paused: `intraslice resume` continues it",
    "pausing": "pausing",
    "cancelling": "cancelling",
    "running": "starting",
}
"""Sentences for states without progress; a queued job has a place in line too."""


def waiting_sentence(live: JobLive) -> str:
    """Return why a job without progress does not run, and for a queued job its place in line.

    Empty for a job that has ended.
    """
    if live.state != "queued":
        return _WAITING.get(live.state, "")
    place = "" if live.queue_position is None else f", {ordinal(live.queue_position)} in line"
    if live.waiting is None:
        return f"queued{place}: waiting for a worker"
    return f"queued{place}: {live.waiting.message.removeprefix('waiting: ')}"


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
