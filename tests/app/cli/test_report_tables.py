"""Tables of shapes and of recovery fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from app.cli.report_tables import (
    bench_table,
    comparison_table,
    dominated_note,
    evaluation_tables,
    print_report,
    print_tables,
    recovery_table,
    shapes_table,
    summary_table,
    sweep_quality_table,
)
from intraslice_core.allocation.shapes import allocation_report
from intraslice_core.config import CompressionSettings
from intraslice_core.plan import LayerPlan
from intraslice_core.reports.bench_page import bench_page
from intraslice_core.reports.fast_shapes import FastShapesReport
from intraslice_core.reports.schema import (
    CompressionReport,
    EvaluationReport,
    PerplexityComparison,
)
from intraslice_core.reports.sweep import SweepPoint, SweepReport
from tests.intraslice_core.reports.samples import (
    LAYER_OF_PARTS,
    PRICED,
    RECOVERY,
    SLICED_LAYER,
    report,
    residual_report,
)


def lines(table: Table) -> list[list[str]]:
    """The cells of every row."""
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    rows = [line for line in capture.get().splitlines() if "│" in line]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_equal_neighbours_share_a_row() -> None:
    assert lines(shapes_table(report(allocation_report("auto", "lagrangian", PRICED)))) == [
        ["dense", "4", "2", "16", "16", "256", "", ""],
        ["0", "4", "2", "16", "16", "256", "0", "0"],
        ["1-2", "4", "2", "12", "12", "128", "0.25", "0.5"],
        ["3", "0", "0", "0", "0", "192", "1.5", "0"],
    ]


def test_shapes_are_shown_without_predictions() -> None:
    rows = lines(shapes_table(report()))
    assert [row[0] for row in rows] == ["dense", "0", "1-2", "3"]
    assert all(row[6:] == ["", ""] for row in rows)


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [(SLICED_LAYER, ["40"]), (LAYER_OF_PARTS, ["10", "20", "30", "64"])],
    ids=["sliced", "parts"],
)
def test_sizes_in_the_residual_stream_follow_those_of_the_modules(
    layer: LayerPlan, sizes: list[str]
) -> None:
    module = ["4", "2", "16", "16", "256"]
    assert lines(shapes_table(residual_report(layer))) == [
        ["dense", *module, *["64"] * len(sizes), "", ""],
        ["0-3", *module, *sizes, "", ""],
    ]


def test_the_title_of_the_shapes_names_the_multiple_of_fast_shapes() -> None:
    allocation = allocation_report("auto", "lagrangian", PRICED)
    for multiple, title in ((16, ", MLP widths in multiples of 16"), (None, "")):
        preference = FastShapesReport(multiple=multiple)
        content = report(allocation.model_copy(update={"fast_shapes": preference}))
        assert shapes_table(content).title == f"shapes by lagrangian{title}"


def test_the_recovered_log_perplexity_is_a_percentage() -> None:
    table = recovery_table(RECOVERY)
    assert lines(table) == [
        ["perplexity, 496 held-out tokens", "10.000", "40.000", "20.000", "50.0%"]
    ]
    assert "distill: 4,096 tokens in 12 s, stopped by the limit on tokens" in str(table.title)


OLD = PerplexityComparison(text="old", context_length=64, tokens=640, dense=10.0, compressed=12.5)
"""Text of a report without divergences and domains."""
MEASURED = OLD.model_copy(
    update={
        "text": "pydoc",
        "kl": 0.12346,
        "kl_stderr": 0.00671,
        "top1_agreement": 0.8764,
        "domain": "out",
    }
)


def test_divergence_and_domain_are_beside_the_perplexity() -> None:
    (table,) = evaluation_tables(EvaluationReport(perplexity=(MEASURED, OLD)))
    assert lines(table) == [
        ["perplexity, pydoc (out-of-domain)", "10.000", "12.500", "1.250"],
        ["KL to dense, nats/token, pydoc", "", "0.1235 ± 0.0067", ""],
        ["top-1 agreement, pydoc", "", "87.6%", ""],
        ["perplexity, old", "10.000", "12.500", "1.250"],
    ]


def test_a_sweep_has_a_row_for_each_ratio_and_text() -> None:
    points = tuple(
        SweepPoint(ratio=ratio, directory=f"ratio-{ratio}", perplexity=texts)
        for ratio, texts in ((0.2, (MEASURED, OLD)), (0.4, (MEASURED,)))
    )
    sweep = SweepReport(
        engine_version="0",
        model="m",
        settings=CompressionSettings(),
        evaluation=None,
        params_before=1,
        bytes_before=1,
        opening_seconds=0.0,
        points=points,
    )
    measured = ["pydoc", "out-of-domain", "1.250", "0.1235 ± 0.0067", "87.6%"]
    assert lines(sweep_quality_table(sweep)) == [
        ["0.2", *measured],
        ["0.2", "old", "", "1.250", "", ""],
        ["0.4", *measured],
    ]


def compared(*results: tuple[str, float, int, float]) -> SweepReport:
    """Return a comparison with these methods, ratios, bytes and perplexities."""
    points = tuple(
        SweepPoint(
            method=method,
            ratio=ratio,
            directory=f"{method}-ratio-{ratio}",
            params_after=size // 2,
            bytes_after=size,
            perplexity=(MEASURED.model_copy(update={"compressed": perplexity}),),
        )
        for method, ratio, size, perplexity in results
    )
    return SweepReport(
        engine_version="0",
        model="m",
        settings=CompressionSettings(),
        methods=("flap", "magnitude"),
        evaluation=None,
        params_before=1,
        bytes_before=1,
        opening_seconds=0.0,
        points=points,
    )


def test_results_that_another_one_beats_in_size_and_quality_are_marked() -> None:
    sweep = compared(
        ("flap", 0.2, 800, 11.0),
        ("magnitude", 0.2, 800, 15.0),
        ("flap", 0.4, 600, 14.0),
        ("magnitude", 0.4, 590, 20.0),
    )
    marks = [(row[0], row[1], row[-1]) for row in lines(bench_table(sweep))]
    assert marks == [
        ("dense", "", ""),
        ("flap", "0.2", "best"),
        ("magnitude", "0.2", "dominated"),
        ("flap", "0.4", "best"),
        ("magnitude", "0.4", "best"),
    ]
    note = dominated_note(sweep)
    assert note is not None
    assert note.startswith("dominated: magnitude at 0.2. Another result is at least as small")
    assert "<td>Beaten on size and quality</td>" in bench_page(sweep)
    assert dominated_note(compared(("flap", 0.2, 800, 11.0))) is None


def test_results_without_every_perplexity_are_not_compared() -> None:
    sweep = compared(("flap", 0.2, 800, 11.0))
    unscored = SweepPoint(method="magnitude", ratio=0.2, directory="m", bytes_after=900)
    assert sweep.with_point(unscored).is_dominated(unscored) is None


def test_the_title_names_the_allocator_and_the_reason_of_a_fallback() -> None:
    assert shapes_table(report()).title == "shapes"
    chosen = allocation_report("auto", "lagrangian", PRICED)
    assert shapes_table(report(chosen)).title == "shapes by lagrangian"
    fallback = allocation_report("fisher", "uniform", fallback_reason="it was worse")
    title = shapes_table(report(fallback)).title
    assert title == "shapes by uniform, not fisher: it was worse"


def test_names_are_printed_literally(capsys: pytest.CaptureFixture[str]) -> None:
    plain = report()
    name = "hub:acme/[bold]small[/bold]:car:x"
    print_tables(comparison_table(plain.model_copy(update={"model": name})))
    assert name in capsys.readouterr().out


def test_the_verdict_and_the_key_figures_are_printed_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = MEASURED.model_copy(update={"text": "wiki", "compressed": 13.5})
    scored = report().model_copy(update={"evaluation": EvaluationReport(perplexity=(worse,))})
    print_report(scored, tmp_path / "out", as_json=False)
    shown = capsys.readouterr().out
    first = shown.splitlines()[0]
    assert first.startswith("Noticeable quality loss. Perplexity rose 35 % on wiki, unseen text")
    summary, _, details = shown.partition("shapes")
    for name in ("Size on disk", "Perplexity, worst unseen text", "Memory to serve, 4,096 tokens"):
        assert name in summary
    assert "compressible parameters" in details
    assert lines(summary_table(scored))[1] == [
        "Perplexity, worst unseen text",
        "10",
        "13.5",
        "+35 %",
    ]


def test_json_has_the_report_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(), tmp_path / "out", as_json=True)
    assert CompressionReport.model_validate_json(capsys.readouterr().out) == report()
