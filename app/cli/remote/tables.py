"""Responses of the service as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel

from intraslice_core.text_sources import DOMAIN_NAMES

if TYPE_CHECKING:
    from app.domain.comparison import ComparedJob, Comparison, TextQuality
    from app.domain.job import Job
    from app.domain.service import Service
    from app.domain.sweep import SweepDetails
    from app.domain.worker import Device, RunningJob

_WIDTH_WITHOUT_TERMINAL = 500
_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "K"))
_GIB = 2**30


def print_json(value: BaseModel | Iterable[BaseModel]) -> None:
    """Print a model or a list of models as JSON."""
    if isinstance(value, BaseModel):
        typer.echo(value.model_dump_json(indent=2))
        return
    typer.echo(json.dumps([item.model_dump(mode="json") for item in value], indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a table; outside of a terminal no cell is truncated, so that ids can be copied."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    table = Table(title=title or None, box=None)
    for index, name in enumerate(columns):
        table.add_column(name, no_wrap=index == 0)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(table)


def print_state(job: Job, *, as_json: bool) -> None:
    """Print the id of a job, and its state on stderr."""
    if as_json:
        print_json(job)
        return
    typer.echo(job.id)
    typer.echo(f"{job.state}", err=True)


JOB_COLUMNS = ("id", "name", "model", "state", "size", "perplexity", "generation", "age")


def job_rows(jobs: Iterable[Job]) -> Iterable[tuple[Any, ...]]:
    """Yield one row of `JOB_COLUMNS` per job."""
    for job in jobs:
        speed = job.result.speedup if job.result else None
        yield (
            job.id,
            job.labels.get("name"),
            f"{job.model.source}:{job.model.ref}",
            _state(job),
            _size(job),
            _perplexity(job),
            speed and _times(speed.decode),
            age(job.created_at),
        )


def _state(job: Job) -> str:
    """Return the state with the progress of a running job, and why one waits or failed."""
    if job.waiting is not None:
        return job.waiting.message
    if job.state == "running" and job.progress is not None:
        return f"{job.stage} {job.progress.fraction:.0%}"
    if job.queue_position is not None:
        return f"queued, {ordinal(job.queue_position)} in line"
    return f"{job.state}: {job.error.code}" if job.error is not None else str(job.state)


def _size(job: Job) -> str:
    """Return the sizes of the weight files; what was requested while there is no result."""
    from intraslice_core.reports.quantities import short_change, size

    result = job.result
    if result is None:
        return requested_size(job)
    change = short_change(result.bytes_after / result.bytes_before)
    return f"{size(result.bytes_before)} → {size(result.bytes_after)} ({change})"


def _perplexity(job: Job) -> str | None:
    from intraslice_core.reports.quantities import number, short_change

    result = job.result
    if result is None or not result.perplexity_before or not result.perplexity_after:
        return None
    before, after = result.perplexity_before, result.perplexity_after
    return f"{number(before)} → {number(after)} ({short_change(after / before)})"


def _times(ratio: float) -> str:
    from intraslice_core.reports.quantities import times

    return times(ratio)


def print_comparison(comparison: Comparison) -> None:
    """Print one column per job, with the settings that differ and all results."""
    rows: list[tuple[Any, ...]] = [("state", *(job.state for job in comparison.jobs))]
    rows += [(row.name, *row.values) for row in comparison.settings if row.differs]
    rows.append(
        ("parameters", *(job.size and f"{job.size.params_after:,}" for job in comparison.jobs))
    )
    rows.append(("bytes", *(job.size and f"{job.size.bytes_after:,}" for job in comparison.jobs)))
    rows += _quality_rows(comparison.jobs)
    tasks = {(task.task, task.metric): None for job in comparison.jobs for task in job.tasks or ()}
    for name in tasks:
        scores = (
            {(task.task, task.metric): task.compressed for task in job.tasks or ()}
            for job in comparison.jobs
        )
        rows.append((", ".join(name), *(score.get(name) for score in scores)))
    for phase in ("prefill", "decode"):
        speeds = (job.speed and f"{getattr(job.speed, phase):.2f}" for job in comparison.jobs)
        rows.append((f"{phase} speedup", *speeds))
    print_table(("", *(job.id for job in comparison.jobs)), rows)


def _quality_rows(jobs: Sequence[ComparedJob]) -> Iterable[tuple[Any, ...]]:
    """Yield perplexity ratio, divergence, agreement and domain of every text, by job."""
    measures: tuple[tuple[str, Callable[[TextQuality], str | None]], ...] = (
        ("perplexity / dense", lambda score: f"{score.ratio:.3f}"),
        ("KL to dense, nats/token", lambda score: _formatted(score.kl, ".4f")),
        ("top-1 agreement", lambda score: _formatted(score.top1_agreement, ".1%")),
        ("domain", lambda score: score.domain and DOMAIN_NAMES[score.domain]),
    )
    columns = [{score.text: score for score in job.quality or ()} for job in jobs]
    for text in dict.fromkeys(text for column in columns for text in column):
        scores = [column.get(text) for column in columns]
        for name, format_measure in measures:
            cells = [score and format_measure(score) for score in scores]
            if any(cells):
                yield (f"{name}, {text}", *cells)


def print_sweep(sweep: SweepDetails) -> None:
    """Print one row per job of a sweep, with its place on the Pareto front."""
    rows = (
        (
            point.job_id,
            point.method,
            point.ratio,
            point.state,
            count(point.params_after),
            point.perplexity and f"{point.perplexity:.3f}",
            _formatted(point.kl, ".4f"),
            _formatted(point.top1_agreement, ".1%"),
            point.domain and DOMAIN_NAMES[point.domain],
            point.decode_speedup and f"{point.decode_speedup:.2f}",
            {None: "", True: "beaten on size and quality", False: "best trade-off"}[
                point.dominated
            ],
        )
        for point in sweep.pareto
    )
    measured = ("parameters", "perplexity", "KL", "top-1 agreement", "domain", "decode speedup")
    columns = ("job", "method", "ratio", "state", *measured, "")
    print_table(columns, rows, f"{sweep.id}: {sweep.state}, {sweep.progress.fraction:.0%}")
    for check in sweep.sizes:
        if not check.equal:
            typer.echo(f"warning: {check.warning}", err=True)


def print_service(service: Service) -> None:
    """Print the project's live jobs, and one row for each device of every worker."""
    jobs = ", ".join(f"{number} {state}" for state, number in service.jobs.items() if number)
    workers = "unknown" if service.workers is None else service.workers
    fields = (
        ("version", service.version),
        ("project", service.project),
        ("scopes", ", ".join(service.scopes)),
        ("jobs", jobs or "none"),
        ("workers", f"{workers}, {service.busy_workers} busy"),
    )
    print_table(("", ""), fields)
    rows = [
        (
            f"{worker.id} (silent)" if worker.silent else worker.id,
            device.name,
            f"{device.memory_bytes / _GIB:.0f} GiB",
            ", ".join(device.dtypes),
            _doing(device),
            age(worker.started_at),
        )
        for worker in service.fleet
        for device in worker.devices
    ]
    if rows:
        print_table(("worker", "device", "memory", "dtypes", "doing", "age"), rows)


def _doing(device: Device) -> str:
    """Return the jobs of a device, or that it is idle."""
    return "; ".join(_running(job) for job in device.jobs) or "idle"


def _running(job: RunningJob) -> str:
    from intraslice_core.reports.quantities import size

    if job.job_id is None:
        return "a job of another project"
    stage = f" {job.stage}" if job.stage else ""
    fraction = "" if job.fraction is None else f" {job.fraction:.0%}"
    memory = job.memory_bytes if job.gpu_memory_bytes is None else job.gpu_memory_bytes
    return f"{job.job_id}{stage}{fraction}{'' if memory is None else f' {size(memory)}'}"


def _formatted(value: float | None, specification: str) -> str | None:
    return None if value is None else format(value, specification)


def ordinal(number: int) -> str:
    """Return an ordinal number: 1st, 2nd, 3rd, 4th."""
    is_teen = number % 100 in (11, 12, 13)
    ending = "th" if is_teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def age(moment: datetime) -> str:
    """Return the time since `moment`, rounded to one unit."""
    seconds = max((datetime.now(UTC) - moment).total_seconds(), 0.0)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def count(number: float | None) -> str | None:
    """Return a number with a unit prefix, such as `102.7M`."""
    if number is None:
        return None
    unit = next((scale for scale in _UNITS if number >= scale[0]), (1.0, ""))
    return f"{number / unit[0]:.4g}{unit[1]}"


def requested_size(job: Job) -> str:
    """Return the budget of a job: a share of the layers' weights, or the size of the result."""
    config = job.compression
    if config.ratio is not None:
        return f"{config.ratio:.0%} removed"
    if config.target_params is not None:
        return f"{count(config.target_params)} parameters"
    return f"{count(config.target_bytes)} bytes"
