"""Reports as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from intraslice_core.plan import LayerPlan
from intraslice_core.reports.schema import (
    CompressionReport,
    EvaluationReport,
    LayerPrediction,
    LoadReport,
    PhaseComparison,
    RecoveryReport,
    SpeedReport,
)
from intraslice_core.reports.sweep import SweepPoint, SweepReport


def comparison_table(report: CompressionReport) -> Table:
    """Size, quality and speed, dense against compressed."""
    table = _table(f"{report.model}: {report.removed_fraction:.1%} off by {report.method}")
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


def recovery_table(report: RecoveryReport) -> Table:
    """What training won back, on text that was not trained on."""
    found = report.held_out
    table = Table(
        title=f"recovered by {report.config.loss}: {report.tokens:,} tokens in "
        f"{report.seconds:.0f} s, ended by its {report.stopped_by}"
    )
    for name in ("", "dense", "compressed", "recovered", "won back, of the log"):
        table.add_column(name, justify="right" if name else "left")
    part = "" if found.recovered is None else f"{found.recovered:.1%}"
    values = (f"{value:.3f}" for value in (found.dense, found.before, found.after))
    table.add_row(f"perplexity, {found.tokens:,} held-back tokens", *values, part)
    return table


def shapes_table(report: CompressionReport) -> Table:
    """What layers keep, and what that was predicted to cost; equal neighbours share a row."""
    table = Table(title=_who_chose(report))
    columns = ("layers", "query heads", "KV heads", "q/k width", "value width", "MLP width")
    for name in (*columns, "predicted loss, attention", "MLP"):
        table.add_column(name, justify="right")
    table.add_row("dense", *_shape(report.geometry.dense_layer()), "", "", end_section=True)
    priced = report.allocation.layers if report.allocation else ()
    rows = [
        (_shape(plan), _prices(priced[layer] if priced else None))
        for layer, plan in enumerate(report.plan.layers)
    ]
    first = 0
    for row, same in groupby(rows):
        last = first + len(list(same)) - 1
        name = f"{first}" if first == last else f"{first}-{last}"
        table.add_row(name, *row[0], *row[1])
        first = last + 1
    return table


def _who_chose(report: CompressionReport) -> str:
    found = report.allocation
    if found is None:
        return "shapes"
    if found.fallback_reason is not None:
        return f"shapes by {found.allocator}, not {found.requested}: {found.fallback_reason}"
    return f"shapes by {found.allocator}"


def _shape(plan: LayerPlan) -> tuple[str, ...]:
    sizes = (
        plan.num_attention_heads,
        plan.num_key_value_heads,
        plan.qk_head_dim,
        plan.v_head_dim,
        plan.intermediate_size,
    )
    return tuple(f"{size:,}" for size in sizes)


def _prices(predicted: LayerPrediction | None) -> tuple[str, str]:
    if predicted is None:
        return "", ""
    return f"{predicted.attention:.3g}", f"{predicted.mlp:.3g}"


def evaluation_tables(report: EvaluationReport) -> list[Table]:
    """Quality and speed, dense against compressed; the loads in tables of their own."""
    table = _table("dense against compressed")
    _add_evaluation(table, report)
    return [table, *load_tables(report.speed_grid)]


def load_tables(loads: Sequence[LoadReport]) -> list[Table]:
    """Speed, memory and cache, a table for each load."""
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
    for name, taken in (
        ("peak memory, bytes", load.peak_memory),
        ("KV cache, bytes a token", load.cache_per_token),
    ):
        table.add_row(name, f"{taken.dense:,.0f}", f"{taken.compressed:,.0f}", f"{taken.ratio:.3f}")
    return table


def sweep_table(report: SweepReport) -> Table:
    """Size, quality and cost of every ratio."""
    table = Table(title=f"{report.model} by {report.settings.method}")
    texts = list(dict.fromkeys(one.text for point in report.points for one in point.perplexity))
    names = ("ratio", "parameters", "bytes", *(f"perplexity, {text}" for text in texts))
    for name in (*names, "seconds", "relative cost"):
        table.add_column(name, justify="right")
    dense = {one.text: one.dense for point in report.points for one in point.perplexity}
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


def _point(point: SweepPoint, texts: list[str]) -> tuple[str, ...]:
    if point.params_after is None or point.bytes_after is None:
        return (f"{point.ratio}", "refused", "", *[""] * len(texts))
    scores = {one.text: f"{one.compressed:.3f}" for one in point.perplexity}
    sizes = (f"{point.params_after:,}", f"{point.bytes_after:,}")
    return (f"{point.ratio}", *sizes, *(scores.get(text, "") for text in texts))


def _cost(point: SweepPoint, relative: float | None) -> tuple[str, str]:
    seconds = "" if point.seconds is None else f"{point.seconds:.1f}"
    return seconds, "" if relative is None else f"{relative:.2f}"


def print_tables(*tables: Table) -> None:
    """On stdout, wide enough for a file where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
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
        table.add_row(
            f"perplexity, {entry.text}",
            f"{entry.dense:.3f}",
            f"{entry.compressed:.3f}",
            f"{entry.ratio:.3f}",
        )
    for task in report.tasks:
        table.add_row(
            f"{task.metric}, {task.task}",
            _score(task.dense, task.dense_stderr),
            _score(task.compressed, task.compressed_stderr),
            f"{task.compressed / task.dense:.3f}" if task.dense else "",
        )
    if report.speed is not None:
        add_speed(table, report.speed)


def _score(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def add_speed(table: Table, speed: SpeedReport) -> None:
    """A row for each part and phase; a part that was removed has none."""
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
