"""`intraslice compress`: compress a model on this machine, without a service.

torch is imported when the command runs, not when the command line is parsed.
"""

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
    OutOption,
    RatioOption,
    TargetBytesOption,
    TargetParamsOption,
    VerifyOption,
)
from app.cli.progress_display import quiet_transformers, show_progress
from app.cli.quantities import quantity
from app.cli.report_tables import print_report
from app.cli.settings_options import SettingsOptions, takes_settings
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.errors import ConfigurationError
from intraslice_core.files import (
    require_free_output,
    require_writable_directory,
    require_writable_file,
)
from intraslice_core.launcher import is_main_process

if TYPE_CHECKING:
    from intraslice_core.reports.schema import CompressionReport


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(compress)


@takes_settings
def compress(  # noqa: PLR0913 (typer reads the options from the signature)
    *,
    model: ModelArgument,
    out: OutOption,
    ratio: RatioOption = None,
    target_params: TargetParamsOption = None,
    target_bytes: TargetBytesOption = None,
    resume_dir: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=panels.ADVANCED,
            help="Keep finished layers in this directory, and resume an interrupted run from it.",
            show_default="none",
        ),
    ] = None,
    offload_dir: OffloadOption = None,
    verify: VerifyOption = True,
    plot: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=panels.OUTPUT,
            help="Plot the dimensions that each layer keeps into this SVG file.",
            show_default="none",
        ),
    ] = None,
    as_json: JsonOption = False,
    options: SettingsOptions,
) -> None:
    """Compress a model into a smaller one that transformers loads.

    With --devices, or under torchrun, several processes with a GPU each share the work.
    """
    with reported_errors():
        require_free_output(out, "--out")
        require_writable_directory(resume_dir, "--resume-dir")
        require_writable_directory(offload_dir, "--offload-dir")
        require_writable_file(plot, "--plot")
        _require_plot_directory(plot)
        with invalid_settings():
            config = CompressionConfig.model_validate(
                {
                    "ratio": ratio,
                    "target_params": quantity(target_params, "--target-params"),
                    "target_bytes": quantity(target_bytes, "--target-bytes"),
                    **options.compression(),
                }
            )
            evaluation = options.evaluation()
        directories = (resume_dir, offload_dir)
        report = _compress(model, out, config, evaluation, directories=directories, verify=verify)
        if not is_main_process():
            return
        if plot is not None:
            from intraslice_core.reports.plots import shape_plot

            plot.write_text(shape_plot(report), encoding="utf-8")
        print_report(report, out, as_json=as_json)


def _compress(
    model: str,
    out: Path,
    config: CompressionConfig,
    evaluation: EvaluationConfig | None,
    *,
    directories: tuple[Path | None, Path | None],
    verify: bool,
) -> CompressionReport:
    """Run the engine with a progress bar; `directories` are for resuming and for offloading."""
    resume_dir, offload_dir = directories
    with show_progress() as on_progress, cancel_on_interrupt() as should_cancel:
        quiet_transformers()
        from intraslice_core.pipeline import compress_model
        from intraslice_core.resume_state import ResumeState

        return compress_model(
            model,
            out,
            config,
            evaluation=evaluation,
            work_dir=None,
            resume_state=ResumeState(directory=resume_dir) if resume_dir else None,
            offload_dir=offload_dir,
            verify=verify,
            on_progress=on_progress,
            should_cancel=should_cancel,
        )


def _require_plot_directory(plot: Path | None) -> None:
    """Raise if the plot's directory does not exist, because it is not created.

    Raises:
        ConfigurationError: naming the option.
    """
    if plot is not None and not plot.absolute().parent.exists():
        raise ConfigurationError(
            f"{plot} cannot be written: its directory does not exist",
            field="--plot",
            hint="name a file in an existing directory",
        )
