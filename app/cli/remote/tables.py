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
    table = Table(*columns, title=title or None, box=None)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(table)


def job_rows(jobs: Iterable[Job]) -> Iterable[tuple[Any, ...]]:
    """Yield one row of `JOB_COLUMNS` per job."""
    for job in jobs:
        yield (
            job.id,
            job.state,
            job.stage if job.state == "running" else None,
            f"{job.progress.fraction:.0%}" if job.progress and job.state == "running" else None,
            f"{job.model.source}:{job.model.ref}",
            _requested_size(job),
            _result(job),
            age(job.created_at),
        )


JOB_COLUMNS = ("id", "state", "stage", "done", "model", "requested", "result", "age")


def print_job(job: Job) -> None:
    """Print the fields of a job, one per line."""
    fields: list[tuple[str, Any]] = [
        ("job", job.id),
        ("state", job.state),
        ("model", f"{job.model.source}:{job.model.ref}"),
        (
            "requested",
            f"{_requested_size(job)}, {job.compression.method}, target {job.compression.target}",
        ),
        ("attempt", f"{job.attempt} of {job.max_attempts}"),
        ("created", job.created_at.isoformat(timespec="seconds")),
    ]
    if job.progress is not None and job.state == "running":
        fields.append(
            ("progress", f"{job.stage}: {job.progress.message} ({job.progress.fraction:.0%})")
        )
    if job.waiting is not None:
        fields.append(("waits", job.waiting.message.removeprefix("waiting: ")))
    if job.error is not None:
        fields.append(("error", f"{job.error.code}: {job.error.message}"))
        fields.append(("hint", job.error.hint))
    if job.artifacts_missing:
        fields.append(("artifacts", "missing in the artifact store of the service"))
    if job.labels:
        fields.append(("labels", ", ".join(f"{key}={value}" for key, value in job.labels.items())))
    print_table(("", ""), [field for field in fields if field[1]])
    print_result(job)


def print_result(job: Job) -> None:
    """Print size, quality and speed of a succeeded job."""
    result = job.result
    if result is None:
        return
    rows: list[tuple[Any, ...]] = [
        (
            "parameters",
            f"{result.params_before:,}",
            f"{result.params_after:,}",
            f"{result.params_after / result.params_before:.3f}",
        ),
        (
            "weights, bytes",
            f"{result.bytes_before:,}",
            f"{result.bytes_after:,}",
            f"{result.bytes_after / result.bytes_before:.3f}",
        ),
    ]
    if result.perplexity_before and result.perplexity_after:
        before, after = result.perplexity_before, result.perplexity_after
        domain = f" ({DOMAIN_NAMES[result.domain]})" if result.domain else ""
        values = (f"{before:.3f}", f"{after:.3f}", f"{after / before:.3f}")
        rows.append((f"perplexity{domain}", *values))
    if result.kl is not None:
        rows.append(("KL to dense, nats/token", "", f"{result.kl:.4f}", ""))
    if result.top1_agreement is not None:
        rows.append(("top-1 agreement", "", f"{result.top1_agreement:.1%}", ""))
    if result.speedup is not None:
        rows.append(("prefill speedup", "", "", f"{result.speedup.prefill:.2f}"))
        rows.append(("decode speedup", "", "", f"{result.speedup.decode:.2f}"))
    print_table(("", "dense", "compressed", "compressed / dense"), rows)


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
            {None: "", True: "dominated", False: "Pareto-optimal"}[point.dominated],
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
            worker.id,
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
    if job.job_id is None:
        return "a job of another project"
    stage = f" {job.stage}" if job.stage else ""
    fraction = "" if job.fraction is None else f" {job.fraction:.0%}"
    return f"{job.job_id}{stage}{fraction}"


def _formatted(value: float | None, specification: str) -> str | None:
    return None if value is None else format(value, specification)


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


def _requested_size(job: Job) -> str:
    config = job.compression
    if config.ratio is not None:
        return f"{config.ratio:.0%} removed"
    if config.target_params is not None:
        return f"{count(config.target_params)} parameters"
    return f"{count(config.target_bytes)} bytes"


def _result(job: Job) -> str | None:
    if job.waiting is not None:
        return job.waiting.message
    if job.error is not None:
        return job.error.code
    if job.result is None:
        return None
    size = f"{count(job.result.params_after)} parameters"
    before, after = job.result.perplexity_before, job.result.perplexity_after
    return f"{size}, perplexity ratio {after / before:.2f}" if before and after else size
