"""Reports as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from intraslice_core.plan import LayerPlan
from intraslice_core.reports.key_figures import summary_lines
from intraslice_core.reports.references import model_name
from intraslice_core.reports.schema import (
    CompressionReport,
    EvaluationReport,
    LayerPrediction,
    LoadReport,
    PerplexityComparison,
    PhaseComparison,
    RecoveryReport,
    SpeedReport,
)
from intraslice_core.reports.sweep import SweepPoint, SweepReport
from intraslice_core.reports.tournament import TournamentReport
from intraslice_core.reports.verdict import report_verdict
from intraslice_core.text_sources import DOMAIN_NAMES

_MARKS = {None: "", True: "dominated", False: "best"}
"""Places in the trade-off of size and quality, in few letters."""


def print_report(report: CompressionReport, out: Path, *, as_json: bool) -> None:
    """Print a report, its summary first and then all tables, or as JSON; warnings go to stderr."""
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    typer.echo(report_verdict(report).text)
    print_tables(summary_table(report))
    recovery = [recovery_table(report.recovery)] if report.recovery else []
    loads = load_tables(report.evaluation.speed_grid) if report.evaluation else ()
    chosen = [tournament_table(report.tournament)] if report.tournament else []
    print_tables(*chosen, shapes_table(report), *recovery, comparison_table(report), *loads)
    if report.tournament:
        typer.echo(report.tournament.reason)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if report.runtimes:
        typer.echo(f"runs in {'; '.join(report.runtimes)}")
    typer.echo(f"wrote {out}")


def summary_table(report: CompressionReport) -> Table:
    """Return a table of the key figures: size, worst perplexity, speed and serving memory."""
    table = Table(title=f"{model_name(report.model)}, compressed")
    table.add_column("")
    for name in ("original", "compressed", "change"):
        table.add_column(name, justify="right")
    for line in summary_lines(report):
        table.add_row(*line)
    return table


def comparison_table(report: CompressionReport) -> Table:
    """Return a table of size, quality and speed of the dense and the compressed model."""
    table = _table(f"{report.model}: {report.removed_fraction:.1%} removed by {report.method}")
    rows = (
        ("parameters", report.params_before, report.params_after),
        ("compressible parameters", report.compressible_before, report.compressible_after),
        ("bytes of weights", report.bytes_before, report.bytes_after),
    )
    for name, before, after in rows:
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.3f}")
    if report.evaluation is not None:
        _add_evaluation(table, report.evaluation)
    return table


def tournament_table(report: TournamentReport) -> Table:
    """Return a table of the methods that auto tried, and why it did not try the others."""
    table = Table(title=f"{report.winner} chosen by auto in {report.seconds:.0f} s")
    table.add_column("method")
    for name in ("KL of the trial, nats/token", *report.held_out_tokens, "seconds"):
        table.add_column(name, justify="right")
    table.add_column("not tried because")
    for candidate in report.candidates:
        if candidate.kl is None:
            blanks = [""] * (2 + len(report.held_out_tokens))
            table.add_row(candidate.method, *blanks, candidate.reason)
            continue
        table.add_row(
            candidate.method,
            _score(candidate.kl, candidate.standard_error),
            *(f"{candidate.kl_by_text[kind]:.4f}" for kind in report.held_out_tokens),
            f"{candidate.seconds:.1f}",
            "",
        )
    return table


def recovery_table(report: RecoveryReport) -> Table:
    """Return a table of the perplexity before and after fine-tuning, on held-out text."""
    held_out = report.held_out
    table = Table(
        title=f"fine-tuned with {report.config.loss}: {report.tokens:,} tokens in "
        f"{report.seconds:.0f} s, stopped by the limit on {report.stopped_by}"
    )
    for name in ("", "dense", "compressed", "fine-tuned", "log-perplexity recovered"):
        table.add_column(name, justify="right" if name else "left")
    recovered = "" if held_out.recovered is None else f"{held_out.recovered:.1%}"
    values = (f"{value:.3f}" for value in (held_out.dense, held_out.before, held_out.after))
    table.add_row(f"perplexity, {held_out.tokens:,} held-out tokens", *values, recovered)
    return table


def shapes_table(report: CompressionReport) -> Table:
    """Return a table of layer shapes and predicted losses; equal neighbours share a row."""
    table = Table(title=_shapes_title(report))
    geometry, plan = report.geometry, report.plan
    dense = geometry.dense_layer()
    columns: tuple[str, ...]
    columns = ("layers", "query heads", "KV heads", "q/k width", "value width", "MLP width")
    columns += (*plan.residual_sizes(dense, geometry),)
    for name in (*columns, "predicted loss, attention", "MLP"):
        table.add_column(name, justify="right")

    def sizes(layer: LayerPlan) -> tuple[str, ...]:
        residual = plan.residual_sizes(layer, geometry).values()
        return (*_shape(layer), *(f"{size:,}" for size in residual))

    table.add_row("dense", *sizes(dense), "", "", end_section=True)
    predictions = report.allocation.layers if report.allocation else ()
    rows = [
        (sizes(shape), _losses(predictions[layer] if predictions else None))
        for layer, shape in enumerate(plan.layers)
    ]
    first = 0
    for row, neighbours in groupby(rows):
        last = first + len(list(neighbours)) - 1
        name = f"{first}" if first == last else f"{first}-{last}"
        table.add_row(name, *row[0], *row[1])
        first = last + 1
    return table


def _shapes_title(report: CompressionReport) -> str:
    allocation = report.allocation
    if allocation is None:
        return "shapes"
    title = f"shapes by {allocation.allocator}"
    if allocation.fast_shapes is not None and allocation.fast_shapes.multiple is not None:
        title += f", MLP widths in multiples of {allocation.fast_shapes.multiple}"
    if allocation.fallback_reason is not None:
        title += f", not {allocation.requested}: {allocation.fallback_reason}"
    return title


def _shape(plan: LayerPlan) -> tuple[str, ...]:
    """Return the sizes of a layer's modules."""
    sizes = (
        plan.num_attention_heads,
        plan.num_key_value_heads,
        plan.qk_head_dim,
        plan.v_head_dim,
        plan.intermediate_size,
    )
    return tuple(f"{size:,}" for size in sizes)


def _losses(predicted: LayerPrediction | None) -> tuple[str, str]:
    if predicted is None:
        return "", ""
    return f"{predicted.attention:.3g}", f"{predicted.mlp:.3g}"


def evaluation_tables(report: EvaluationReport) -> list[Table]:
    """Return a table of quality and speed, and one table for each load."""
    table = _table("dense against compressed")
    _add_evaluation(table, report)
    return [table, *load_tables(report.speed_grid)]


def load_tables(loads: Sequence[LoadReport]) -> list[Table]:
    """Return a table of speed, memory and KV cache for each load."""
    return [_load_table(load) for load in loads]


def _load_table(load: LoadReport) -> Table:
    title = f"{load.batch_size} x {load.context_length:,} tokens, {load.new_tokens} new"
    table = _table(f"{title}: medians ± half the interquartile range of {load.repeats}")
    table.add_row("prefill tokens/s", *_phase(load.prefill))
    table.add_row("decode tokens/s", *_phase(load.decode))
    first = load.first_token
    table.add_row(
        "first token, ms",
        f"{1000 * first.dense:.1f} ± {500 * first.dense_spread:.1f}",
        f"{1000 * first.compressed:.1f} ± {500 * first.compressed_spread:.1f}",
        f"{first.ratio:.3f}",
    )
    for name, size in (
        ("peak memory, bytes", load.peak_memory),
        ("KV cache, bytes per token", load.cache_per_token),
    ):
        table.add_row(name, f"{size.dense:,.0f}", f"{size.compressed:,.0f}", f"{size.ratio:.3f}")
    return table


def sweep_table(report: SweepReport) -> Table:
    """Return a table of size, quality and cost of every ratio."""
    table = Table(title=f"{report.model} by {report.settings.method}")
    scores = [score for point in report.points for score in point.perplexity]
    texts = list(dict.fromkeys(score.text for score in scores))
    names = ("ratio", "parameters", "bytes", *(f"perplexity, {text}" for text in texts))
    for name in (*names, "seconds", "relative cost"):
        table.add_column(name, justify="right")
    dense = {score.text: score.dense for score in scores}
    table.add_row(
        "dense",
        f"{report.params_before:,}",
        f"{report.bytes_before:,}",
        *(f"{dense[text]:.3f}" for text in texts),
        *("", ""),
        end_section=True,
    )
    for point in report.points:
        table.add_row(*_point(point, texts), *_cost(point, report.relative_cost(point)))
    return table


def bench_table(report: SweepReport) -> Table:
    """Return a table of size, quality and cost of every method, by ratio."""
    table = Table(title=f"{report.model}: {len(report.methods)} methods")
    texts = list(report.dense_perplexity)
    names = ("ratio", "parameters", *(f"perplexity, {text}" for text in texts))
    table.add_column("method")
    for name in (*names, "seconds", "peak memory"):
        table.add_column(name, justify="right")
    table.add_column("trade-off")
    table.add_row(
        *("dense", "", f"{report.params_before:,}"),
        *(f"{value:.3f}" for value in report.dense_perplexity.values()),
        *("", "", ""),
        end_section=True,
    )
    by_ratio = sorted(report.points, key=lambda point: point.ratio)
    for _, points in groupby(by_ratio, key=lambda point: point.ratio):
        for point in points:
            mark = _MARKS[report.is_dominated(point)]
            table.add_row(point.method, *_bench_row(point, texts), mark)
        table.add_section()
    return table


def dominated_note(report: SweepReport) -> str | None:
    """Return a sentence that names the results which another one beats; None without any."""
    names = [
        f"{point.method} at {point.ratio:g}"
        for point in sorted(report.points, key=lambda point: point.ratio)
        if report.is_dominated(point)
    ]
    if not names:
        return None
    return (
        f"dominated: {', '.join(names)}. Another result is at least as small, as good on every "
        "text and, where measured, as fast, and better in one of these"
    )


def _bench_row(point: SweepPoint, texts: list[str]) -> tuple[str, ...]:
    ratio, parameters, _, *perplexities = _point(point, texts)
    seconds = "" if point.seconds is None else f"{point.seconds:.1f}"
    memory = point.peak_memory_bytes
    peak = "" if memory is None else f"{memory / 2**20:,.0f} MiB"
    return (ratio, parameters, *perplexities, seconds, peak)


def sweep_quality_table(report: SweepReport) -> Table:
    """Return a table of the quality on each text at every ratio and by every compared method."""
    table = Table(title="quality by text")
    names = ("text", "domain", "perplexity / dense", "KL to dense, nats/token", "top-1 agreement")
    first = ("method", "ratio") if report.methods else ("ratio",)
    for name in (*first, *names):
        table.add_column(name, justify="left" if name in ("method", "text", "domain") else "right")
    for point in sorted(report.points, key=lambda point: point.ratio if report.methods else 0.0):
        for entry in point.perplexity:
            table.add_row(
                *((point.method,) if report.methods else ()),
                f"{point.ratio}",
                entry.text,
                DOMAIN_NAMES[entry.domain] if entry.domain else "",
                f"{entry.ratio:.3f}",
                *_divergence(entry),
            )
    return table


def _point(point: SweepPoint, texts: list[str]) -> tuple[str, ...]:
    if point.params_after is None or point.bytes_after is None:
        return (f"{point.ratio}", "rejected", "", *[""] * len(texts))
    scores = {score.text: f"{score.compressed:.3f}" for score in point.perplexity}
    sizes = (f"{point.params_after:,}", f"{point.bytes_after:,}")
    return (f"{point.ratio}", *sizes, *(scores.get(text, "") for text in texts))


def _cost(point: SweepPoint, relative: float | None) -> tuple[str, str]:
    seconds = "" if point.seconds is None else f"{point.seconds:.1f}"
    return seconds, "" if relative is None else f"{relative:.2f}"


def print_tables(*tables: Table) -> None:
    """Print tables to stdout, 120 columns wide where stdout is not a terminal."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, width=120)
    for table in tables:
        console.print(table)


def _table(title: str) -> Table:
    table = Table(title=title)
    table.add_column("")
    for name in ("dense", "compressed", "compressed / dense"):
        table.add_column(name, justify="right")
    return table


def _add_evaluation(table: Table, report: EvaluationReport) -> None:
    for entry in report.perplexity:
        domain = f" ({DOMAIN_NAMES[entry.domain]})" if entry.domain else ""
        table.add_row(
            f"perplexity, {entry.text}{domain}",
            f"{entry.dense:.3f}",
            f"{entry.compressed:.3f}",
            f"{entry.ratio:.3f}",
        )
        kl, agreement = _divergence(entry)
        if kl:
            table.add_row(f"KL to dense, nats/token, {entry.text}", "", kl, "")
            table.add_row(f"top-1 agreement, {entry.text}", "", agreement, "")
    for task in report.tasks:
        table.add_row(
            f"{task.metric}, {task.task}",
            _score(task.dense, task.dense_stderr),
            _score(task.compressed, task.compressed_stderr),
            f"{task.compressed / task.dense:.3f}" if task.dense else "",
        )
    if report.speed is not None:
        add_speed(table, report.speed)


def _divergence(entry: PerplexityComparison) -> tuple[str, str]:
    """Return KL divergence and top-1 agreement, empty where they were not measured."""
    if entry.kl is None or entry.top1_agreement is None:
        return "", ""
    return _score(entry.kl, entry.kl_stderr), f"{entry.top1_agreement:.1%}"


def _score(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def add_speed(table: Table, speed: SpeedReport) -> None:
    """Add a row for each part and phase; a part that was removed entirely has none."""
    parts = {
        "model": speed.whole,
        "layers": speed.layers,
        "attention": speed.attention,
        "MLP": speed.mlp,
    }
    for name, part in parts.items():
        if part is not None:
            table.add_row(f"prefill tokens/s, {name}", *_phase(part.prefill))
            table.add_row(f"decode tokens/s, {name}", *_phase(part.decode))


def _phase(phase: PhaseComparison) -> tuple[str, str, str]:
    return (
        f"{phase.dense:.1f} ± {phase.dense_spread / 2:.1f}",
        f"{phase.compressed:.1f} ± {phase.compressed_spread / 2:.1f}",
        f"{phase.ratio:.3f}",
    )
