"""`intraslice bench`: methods compared on one model, at equal sizes and on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import panels
from app.cli.errors import invalid_settings, reported_errors
from app.cli.methods import METHOD_NAMES
from app.cli.methods import methods as read_methods
from app.cli.options import JsonOption, ModelArgument, OffloadOption, VerifyOption
from app.cli.ratios import ratios as read_ratios
from app.cli.report_tables import bench_table, dominated_note, print_tables, sweep_quality_table
from app.cli.settings_options import SettingsOptions, takes_shared_settings
from app.cli.sweep import exit_if_rejected, run_sweep
from intraslice_core.config import CompressionSettings, MethodChoice
from intraslice_core.errors import ConfigurationError
from intraslice_core.files import atomic_file, require_writable_directory
from intraslice_core.reports.sweep import SIZE_TOLERANCE, SweepRequest

if TYPE_CHECKING:
    from intraslice_core.reports.sweep import SweepReport

MAX_CHILDREN = 64
PAGE_FILE = "bench.html"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(bench)


@takes_shared_settings
def bench(  # noqa: PLR0913 (typer reads the options from the signature)
    *,
    model: ModelArgument,
    methods: Annotated[
        list[str],
        typer.Option(
            metavar="METHOD,…",
            rich_help_panel=panels.AMOUNT,
            help="Methods to compare, separated by commas; repeatable. Choose from "
            f"{METHOD_NAMES}.",
        ),
    ],
    ratios: Annotated[
        str,
        typer.Option(
            metavar="RATIOS",
            rich_help_panel=panels.AMOUNT,
            help="Fractions of the compressible parameters to remove (0 or more, below 1). Write "
            "START:STOP:STEP, which includes STOP, or a list, for example 0.1:0.3:0.1 or 0.2,0.3. "
            f"Methods times ratios may be {MAX_CHILDREN} at most.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            rich_help_panel=panels.OUTPUT,
            help="Output directory, or the one of an interrupted comparison to resume.",
        ),
    ],
    offload_dir: OffloadOption = None,
    verify: VerifyOption = True,
    as_json: JsonOption = False,
    options: SettingsOptions,
) -> None:
    """Compare methods on a model: every method at every ratio, with the same calibration text."""
    with reported_errors():
        ratio_values = read_ratios(ratios, "--ratios")
        names = read_methods(methods, "--methods")
        _require_few(names, ratio_values)
        require_writable_directory(out, "--out")
        require_writable_directory(offload_dir, "--offload-dir")
        with invalid_settings():
            settings = CompressionSettings.model_validate(
                options.compression() | {"method": names[0]}
            )
            evaluation = options.evaluation()
        request = SweepRequest(
            model=model,
            settings=settings,
            ratios=ratio_values,
            methods=names,
            evaluation=evaluation,
            verify=verify,
        )
        report = run_sweep(request, out, offload_dir)
        _write_page(report, out)
        _print(report, out, as_json)


def _require_few(methods: tuple[MethodChoice, ...], ratios: tuple[float, ...]) -> None:
    """Raise if no method is named, or if there are too many for the ratios.

    Raises:
        ConfigurationError: naming the option.
    """
    if not methods:
        hint = f"name some of {METHOD_NAMES}"
        raise ConfigurationError("no method is named", field="--methods", hint=hint)
    children = len(methods) * len(ratios)
    if children > MAX_CHILDREN:
        raise ConfigurationError(
            f"{len(methods)} methods at {len(ratios)} ratios are {children} compressions",
            field="--methods",
            hint=f"at most {MAX_CHILDREN} are allowed: name fewer methods or fewer ratios",
        )


def _write_page(report: SweepReport, out: Path) -> None:
    """Write the page with the table and the curves."""
    from intraslice_core.reports.bench_page import bench_page

    with atomic_file(out / PAGE_FILE) as partial:
        partial.write_text(bench_page(report), encoding="utf-8")
        partial.chmod(0o644)


def _print(report: SweepReport, out: Path, as_json: bool) -> None:
    """Print the report; exit with code 1 if the gate rejected a result."""
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_tables(bench_table(report))
        if note := dominated_note(report):
            typer.echo(note)
        if report.dense_perplexity:
            print_tables(sweep_quality_table(report))
        if report.sizes and all(check.equal for check in report.sizes):
            typer.echo(f"at every ratio, parameter counts differ by at most {SIZE_TOLERANCE:.1%}")
        typer.echo(f"wrote {out}, with all curves in {out / PAGE_FILE}")
    for check in report.sizes:
        if not check.equal:
            typer.echo(f"warning: {check.warning}", err=True)
    exit_if_rejected(report)
