"""`intraslice sweep`: one model at several ratios, learnt from once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.interrupts import cancel_on_interrupt
from app.cli.options import (
    JsonOption,
    ModelArgument,
    OffloadOption,
    VerifyOption,
    require_directory,
)
from app.cli.progress_display import quiet_transformers, show_progress
from app.cli.ratios import ratios as read_ratios
from app.cli.refusals import explained, refuse_settings
from app.cli.report_tables import print_tables, sweep_table
from app.cli.settings_options import Asked, takes_settings
from intraslice_core.config import CompressionSettings
from intraslice_core.errors import CompressionCancelledError
from intraslice_core.reports.plots import shape_plot
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
            help="START:STOP:STEP, as 0.1:0.5:0.1 with 0.5 included, or a list: 0.1,0.25,0.4.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Directory to make, or of a stopped sweep to go on with.")
    ],
    offload_dir: OffloadOption = None,
    verify: VerifyOption = True,
    plots: Annotated[
        bool, typer.Option("--plots", help="Draw what every layer keeps, an SVG file a ratio.")
    ] = False,
    as_json: JsonOption = False,
    asked: Asked,
) -> None:
    """Compress a model at several ratios: it is learnt from once, each ratio is cheap."""
    with explained():
        wanted = read_ratios(ratios, "--ratios")
        require_directory(out, "--out")
        require_directory(offload_dir, "--offload-dir")
        with refuse_settings():
            settings = CompressionSettings.model_validate(asked.compression())
            measured = asked.evaluation()
        request = SweepRequest(
            model=model,
            settings=settings,
            ratios=wanted,
            evaluation=measured,
            verify=verify,
        )
        report = _sweep(request, out, offload_dir)
        if plots:
            _draw(report, out)
        _tell(report, out, as_json)


def _sweep(request: SweepRequest, out: Path, offload_dir: Path | None) -> SweepReport:
    """Run the engine under one progress bar."""
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
                f"cancelled; the same command goes on with what is in {out}, or remove it", err=True
            )
            raise typer.Exit(130) from None


def _draw(report: SweepReport, out: Path) -> None:
    """Beside each checkpoint, under its name."""
    from intraslice_core.reports.schema import REPORT_FILE, CompressionReport

    for point in report.points:
        if point.refused is None:
            text = (out / point.directory / REPORT_FILE).read_bytes()
            drawing = shape_plot(CompressionReport.model_validate_json(text))
            (out / f"{point.directory}.svg").write_text(drawing, encoding="utf-8")


def _tell(report: SweepReport, out: Path, as_json: bool) -> None:
    """Print what came out; a ratio that the gate refused makes it a failure."""
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_tables(sweep_table(report))
        typer.echo(f"wrote {out}")
    refused = [point for point in report.points if point.refused is not None]
    for point in refused:
        typer.echo(f"error: ratio {point.ratio}: {point.refused}", err=True)
    if refused:
        raise typer.Exit(1)
