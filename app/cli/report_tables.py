"""Reports as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from intraslice_core.reports.schema import (
    CompressionReport,
    EvaluationReport,
    PhaseComparison,
    SpeedReport,
)


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


def evaluation_table(report: EvaluationReport) -> Table:
    """Quality and speed, dense against compressed."""
    table = _table("dense against compressed")
    _add_evaluation(table, report)
    return table


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
    if report.speed is not None:
        add_speed(table, report.speed)


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
