"""What the service says, as tables for people and as JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from app.domain.comparison import Comparison
    from app.domain.job import Job
    from app.domain.sweep import SweepDetails

_WIDEST = 500
_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "K"))


def print_json(found: BaseModel | Iterable[BaseModel]) -> None:
    """One object, or a list of them."""
    if isinstance(found, BaseModel):
        typer.echo(found.model_dump_json(indent=2))
        return
    typer.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Elsewhere than in a terminal nothing is cut: ids are there to be copied."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=_WIDEST)
    table = Table(*columns, title=title or None, box=None)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(table)


def job_rows(jobs: Iterable[Job]) -> Iterable[tuple[Any, ...]]:
    """Newest first, as they come."""
    for job in jobs:
        yield (
            job.id,
            job.state,
            job.stage if job.state == "running" else None,
            f"{job.progress.fraction:.0%}" if job.progress and job.state == "running" else None,
            f"{job.model.source}:{job.model.ref}",
            _asked(job),
            _result(job),
            age(job.created_at),
        )


JOB_COLUMNS = ("id", "state", "stage", "done", "model", "asked for", "result", "age")


def print_job(job: Job) -> None:
    """One job, a fact a line."""
    facts: list[tuple[str, Any]] = [
        ("job", job.id),
        ("state", job.state),
        ("model", f"{job.model.source}:{job.model.ref}"),
        ("asked for", f"{_asked(job)}, {job.compression.method}, target {job.compression.target}"),
        ("attempt", f"{job.attempt} of {job.max_attempts}"),
        ("made", job.created_at.isoformat(timespec="seconds")),
    ]
    if job.progress is not None and job.state == "running":
        facts.append(("now", f"{job.stage}: {job.progress.message} ({job.progress.fraction:.0%})"))
    if job.error is not None:
        facts.append(("error", f"{job.error.code}: {job.error.message}"))
        facts.append(("hint", job.error.hint))
    if job.labels:
        facts.append(("labels", ", ".join(f"{key}={value}" for key, value in job.labels.items())))
    print_table(("", ""), [fact for fact in facts if fact[1]])
    print_result(job)


def print_result(job: Job) -> None:
    """Size, quality and speed of a job that has succeeded."""
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
            "bytes of weights",
            f"{result.bytes_before:,}",
            f"{result.bytes_after:,}",
            f"{result.bytes_after / result.bytes_before:.3f}",
        ),
    ]
    if result.perplexity_before and result.perplexity_after:
        before, after = result.perplexity_before, result.perplexity_after
        rows.append(("perplexity", f"{before:.3f}", f"{after:.3f}", f"{after / before:.3f}"))
    if result.speedup is not None:
        rows.append(("prefill speed-up", "", "", f"{result.speedup.prefill:.2f}"))
        rows.append(("decode speed-up", "", "", f"{result.speedup.decode:.2f}"))
    print_table(("", "dense", "compressed", "compressed / dense"), rows)


def print_comparison(found: Comparison) -> None:
    """A column for each job; of the settings only those that differ."""
    rows: list[tuple[Any, ...]] = [("state", *(job.state for job in found.jobs))]
    rows += [(row.name, *row.values) for row in found.settings if row.differs]
    rows.append(("parameters", *(job.size and f"{job.size.params_after:,}" for job in found.jobs)))
    rows.append(("bytes", *(job.size and f"{job.size.bytes_after:,}" for job in found.jobs)))
    texts = {one.text: None for job in found.jobs for one in job.quality or ()}
    for text in texts:
        scores = ({one.text: one.ratio for one in job.quality or ()} for job in found.jobs)
        ratios = (score.get(text) for score in scores)
        rows.append((f"perplexity / dense, {text}", *(r and f"{r:.3f}" for r in ratios)))
    tasks = {(one.task, one.metric): None for job in found.jobs for one in job.tasks or ()}
    for name in tasks:
        known = ({(t.task, t.metric): t.compressed for t in j.tasks or ()} for j in found.jobs)
        rows.append((", ".join(name), *(one.get(name) for one in known)))
    for phase in ("prefill", "decode"):
        speeds = (job.speed and f"{getattr(job.speed, phase):.2f}" for job in found.jobs)
        rows.append((f"{phase} speed-up", *speeds))
    print_table(("", *(job.id for job in found.jobs)), rows)


def print_sweep(sweep: SweepDetails) -> None:
    """A row for each job; what another point beats is said."""
    rows = (
        (
            point.job_id,
            point.ratio,
            point.state,
            count(point.params_after),
            point.perplexity and f"{point.perplexity:.3f}",
            point.decode_speedup and f"{point.decode_speedup:.2f}",
            {None: "", True: "dominated", False: "best of its size"}[point.dominated],
        )
        for point in sweep.pareto
    )
    columns = ("job", "ratio", "state", "parameters", "perplexity", "decode speed-up", "")
    print_table(columns, rows, f"{sweep.id}: {sweep.state}, {sweep.progress.fraction:.0%}")


def age(moment: datetime) -> str:
    """How long ago, roughly."""
    seconds = max((datetime.now(UTC) - moment).total_seconds(), 0.0)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def count(number: float | None) -> str | None:
    """`102.7M`."""
    if number is None:
        return None
    unit = next((one for one in _UNITS if number >= one[0]), (1.0, ""))
    return f"{number / unit[0]:.4g}{unit[1]}"


def _asked(job: Job) -> str:
    config = job.compression
    if config.ratio is not None:
        return f"{config.ratio:.0%} off"
    if config.target_params is not None:
        return f"{count(config.target_params)} parameters"
    return f"{count(config.target_bytes)} bytes"


def _result(job: Job) -> str | None:
    if job.error is not None:
        return job.error.code
    if job.result is None:
        return None
    found = f"{count(job.result.params_after)}"
    before, after = job.result.perplexity_before, job.result.perplexity_after
    return f"{found}, perplexity {after / before:.2f} x" if before and after else found
