"""Summaries of one job: its estimate before it runs, its state and its result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from app.cli.remote.tables import ordinal, print_table, requested_size
from intraslice_core.reports.quantities import (
    change,
    count,
    duration,
    duration_range,
    number,
    percent,
    short_change,
    size,
    times,
)
from intraslice_core.reports.verdict import ScoredText, verdict
from intraslice_core.text_sources import DOMAIN_NAMES

if TYPE_CHECKING:
    from app.domain.job import Job, JobResult
    from app.domain.validation import Validation
    from intraslice_core.cost_model import Estimate

Row = tuple[Any, ...]


def print_validation(validation: Validation, target: str) -> None:
    """Print the estimate of a job as a short table, and the warnings on stderr.

    Args:
        validation: answer of the service.
        target: target of the job.
    """
    print_table(("", "original", "estimate", "change"), _estimate_rows(validation))
    print_table(("", ""), _plan_rows(validation, target))
    for warning in validation.warnings:
        typer.echo(f"warning: {warning.message}", err=True)


def _estimate_rows(validation: Validation) -> Iterator[Row]:
    expected = validation.estimate
    if expected is None:
        yield ("size on disk", "", "known once a worker has read the model", "")
        return
    yield (
        "size on disk",
        size(expected.bytes_before),
        size(expected.bytes_after),
        change(expected.bytes_before, expected.bytes_after),
    )
    yield (
        "parameters",
        count(expected.params_before),
        count(expected.params_after),
        change(expected.params_before, expected.params_after),
    )


def _plan_rows(validation: Validation, target: str) -> Iterator[Row]:
    expected = validation.estimate
    if expected is not None:
        yield ("layer weights removed", percent(expected.achieved_ratio))
        yield ("peak memory", _memory(expected))
    yield ("time", _time(validation))
    if validation.tournament is not None:
        yield ("methods to try", ", ".join(validation.tournament.candidates))
    yield ("calibration", ", ".join(validation.calibration_sources))
    for support in validation.targets:
        if support.target == target:
            yield ("runs in", ", ".join(support.runtimes))
    others = [
        f"{support.target}{'' if support.available else ' (not available)'}"
        for support in validation.targets
        if support.target != target
    ]
    yield ("other targets", ", ".join(others))


def _memory(expected: Estimate) -> str:
    """Return the memory of a job on a CPU, and the least that it runs in."""
    peak, least = size(expected.peak_memory_bytes), size(expected.least_memory_bytes)
    return peak if peak == least else f"{peak}, at least {least}"


def _time(validation: Validation) -> str:
    """Return the expected duration on each class of machines."""
    if not validation.durations:
        if validation.seconds_low is None or validation.seconds_high is None:
            return "known once a worker has opened the model"
        likely = duration_range(validation.seconds_low, validation.seconds_high)
        return f"{likely}, a guess until the first job has finished"
    return ", ".join(
        f"{duration_range(expected.seconds_low, expected.seconds_high)} on {expected.device}"
        for expected in validation.durations
    )


def print_job(job: Job) -> None:
    """Print the result of a job, then its fields, one per line."""
    if job.result is not None:
        print_result(job, job.result)
    fields: list[tuple[str, Any]] = [
        ("job", job.id),
        ("name", job.labels.get("name")),
        ("state", job.state),
        ("model", f"{job.model.source}:{job.model.ref}"),
        (
            "requested",
            f"{requested_size(job)}, {job.compression.method}, target {job.compression.target}",
        ),
        ("attempt", f"{job.attempt} of {job.max_attempts}"),
        ("created", job.created_at.isoformat(timespec="seconds")),
        ("time worked", duration(job.worked_seconds) if job.worked_seconds else None),
    ]
    if job.progress is not None and job.state == "running":
        fields.append(
            ("progress", f"{job.stage}: {job.progress.message} ({job.progress.fraction:.0%})")
        )
    if job.queue_position is not None:
        fields.append(("queue", f"{ordinal(job.queue_position)} in line"))
    if job.waiting is not None:
        fields.append(("waits", job.waiting.message.removeprefix("waiting: ")))
    if job.error is not None:
        fields.append(("error", f"{job.error.code}: {job.error.message}"))
        fields.append(("hint", job.error.hint))
    if job.artifacts_missing:
        fields.append(("artifacts", "missing in the artifact store of the service"))
    labels = {key: value for key, value in job.labels.items() if key != "name"}
    if labels:
        fields.append(("labels", ", ".join(f"{key}={value}" for key, value in labels.items())))
    print_table(("", ""), [field for field in fields if field[1]])


def print_result(job: Job, result: JobResult) -> None:
    """Print the verdict on a succeeded job, its size, quality and speed."""
    scored = _scored_text(job, result)
    typer.echo(verdict(() if scored is None else (scored,), ()).text)
    print_table(("", "original", "compressed", "change"), _result_rows(result))


def _scored_text(job: Job, result: JobResult) -> ScoredText | None:
    """Return the first evaluation text, whose perplexity is part of the result."""
    if not result.perplexity_before or not result.perplexity_after:
        return None
    texts = job.evaluation.perplexity if job.evaluation else ()
    return ScoredText(
        name=texts[0] if texts else "the evaluation text",
        dense=result.perplexity_before,
        compressed=result.perplexity_after,
        domain=result.domain,
    )


def _result_rows(result: JobResult) -> Iterator[Row]:
    yield (
        "size on disk",
        size(result.bytes_before),
        size(result.bytes_after),
        change(result.bytes_before, result.bytes_after),
    )
    yield (
        "parameters",
        count(result.params_before),
        count(result.params_after),
        change(result.params_before, result.params_after),
    )
    if result.perplexity_before and result.perplexity_after:
        before, after = result.perplexity_before, result.perplexity_after
        domain = f" ({DOMAIN_NAMES[result.domain]})" if result.domain else ""
        yield (f"perplexity{domain}", number(before), number(after), short_change(after / before))
    if result.kl is not None:
        yield ("KL to dense, nats/token", "", f"{result.kl:.4f}", "")
    if result.top1_agreement is not None:
        yield ("top-1 agreement", "", f"{result.top1_agreement:.1%}", "")
    if result.speedup is not None:
        yield ("prompt processing", "", "", times(result.speedup.prefill))
        yield ("generation", "", "", times(result.speedup.decode))
