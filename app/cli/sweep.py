"""`intraslice sweep`: one model at several ratios, with sensitivities measured once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import panels
from app.cli.errors import invalid_settings, reported_errors
from app.cli.interrupts import cancel_on_interrupt
from app.cli.options import (
    JsonOption,
    ModelArgument,
    OffloadOption,
    VerifyOption,
)
from app.cli.progress_display import quiet_transformers, show_progress
from app.cli.ratios import ratios as read_ratios
from app.cli.report_tables import print_tables, sweep_quality_table, sweep_table
from app.cli.settings_options import SettingsOptions, takes_settings
from intraslice_core.config import CompressionSettings
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.files import require_writable_directory
from intraslice_core.reports.sweep import SweepRequest

if TYPE_CHECKING:
    from intraslice_core.reports.sweep import SweepReport


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(sweep)


@takes_settings
def sweep(  # noqa: PLR0913 (typer reads the options from the signature)
    *,
    model: ModelArgument,
    ratios: Annotated[
        str,
        typer.Option(
            metavar="RATIOS",
            rich_help_panel=panels.AMOUNT,
            help="Fractions of the compressible parameters to remove (0 or more, below 1; at most "
            "50 ratios). Write START:STOP:STEP, which includes STOP, or a list, for example "
            "0.1:0.5:0.1 or 0.1,0.25,0.4.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            rich_help_panel=panels.OUTPUT,
            help="Output directory, or the one of an interrupted sweep to resume.",
        ),
    ],
    offload_dir: OffloadOption = None,
    verify: VerifyOption = True,
    plots: Annotated[
        bool,
        typer.Option(
            "--plots",
            rich_help_panel=panels.OUTPUT,
            help="Plot the dimensions that each layer keeps, one SVG file per ratio.",
        ),
    ] = False,
    as_json: JsonOption = False,
    options: SettingsOptions,
) -> None:
    """Compress a model at several ratios, sharing most of the work."""
    with reported_errors():
        ratio_values = read_ratios(ratios, "--ratios")
        require_writable_directory(out, "--out")
        require_writable_directory(offload_dir, "--offload-dir")
        with invalid_settings():
            settings = CompressionSettings.model_validate(options.compression())
            evaluation = options.evaluation()
        request = SweepRequest(
            model=model,
            settings=settings,
            ratios=ratio_values,
            evaluation=evaluation,
            verify=verify,
        )
        report = run_sweep(request, out, offload_dir)
        if plots:
            _write_plots(report, out)
        _print(report, out, as_json)


def run_sweep(request: SweepRequest, out: Path, offload_dir: Path | None) -> SweepReport:
    """Run the engine with one progress bar."""
    with show_progress() as on_progress, cancel_on_interrupt() as should_cancel:
        quiet_transformers()
        from intraslice_core.sweep import compress_sweep

        try:
            return compress_sweep(
                request,
                out,
                offload_dir=offload_dir,
                on_progress=on_progress,
                should_cancel=should_cancel,
            )
        except CompressionCancelledError:
            typer.echo(
                f"cancelled; run the same command again to resume from {out}, or remove it",
                err=True,
            )
            raise typer.Exit(130) from None


def _write_plots(report: SweepReport, out: Path) -> None:
    """Write a plot beside each checkpoint, under the checkpoint's name."""
    from intraslice_core.reports.plots import shape_plot
    from intraslice_core.reports.schema import REPORT_FILE, CompressionReport

    for point in report.points:
        if point.refused is None:
            text = (out / point.directory / REPORT_FILE).read_bytes()
            plot = shape_plot(CompressionReport.model_validate_json(text))
            (out / f"{point.directory}.svg").write_text(plot, encoding="utf-8")


def _print(report: SweepReport, out: Path, as_json: bool) -> None:
    """Print the report; exit with code 1 if the gate rejected a ratio."""
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_tables(sweep_table(report))
        if any(point.perplexity for point in report.points):
            print_tables(sweep_quality_table(report))
        typer.echo(f"wrote {out}")
    exit_if_rejected(report)


def exit_if_rejected(report: SweepReport) -> None:
    """Report the compressions that the quality gate rejected and exit with code 1; else return."""
    rejected = [point for point in report.points if point.refused is not None]
    for point in rejected:
        method = f"{point.method}, " if report.methods else ""
        typer.echo(f"error: {method}ratio {point.ratio}: {point.refused}", err=True)
    if rejected:
        raise typer.Exit(1)
