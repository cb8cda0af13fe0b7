"""`intraslice recover`: recovery fine-tuning of a compressed checkpoint, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import panels
from app.cli.errors import invalid_settings, reported_errors
from app.cli.interrupts import cancel_on_interrupt
from app.cli.option_groups import with_options
from app.cli.options import (
    DEFAULT,
    DeviceOption,
    DtypeOption,
    JsonOption,
    OutOption,
    TextFieldOption,
)
from app.cli.progress_display import quiet_transformers, show_progress
from app.cli.recovery_options import DEFAULT_RECOVERY, LOSSES, OPTIONS, recovery_settings
from app.cli.report_tables import print_report
from intraslice_core.config import RecoveryConfig, RecoveryLoss
from intraslice_core.files import require_free_output, require_writable_directory
from intraslice_core.launcher import is_main_process

_LossOption = Annotated[
    RecoveryLoss, typer.Option(rich_help_panel=panels.RECOVERY, help=f"Fine-tuning loss: {LOSSES}.")
]
_ResumeOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Keep the training state in this directory, and resume an interrupted run from it.",
        show_default="none",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(recover)


@with_options("training", OPTIONS, dict)
def recover(  # noqa: PLR0913 (typer reads the options from the signature)
    *,
    directory: Annotated[
        Path,
        typer.Argument(
            rich_help_panel=panels.MODEL, help="Compressed checkpoint; it is not changed."
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            rich_help_panel=panels.MODEL,
            help="Dense model that it was made from, named as for compress.",
        ),
    ],
    out: OutOption,
    loss: _LossOption = DEFAULT_RECOVERY.loss,
    text_field: TextFieldOption = None,
    dtype: DtypeOption = DEFAULT.dtype,
    device: DeviceOption = DEFAULT.device,
    resume_dir: _ResumeOption = None,
    as_json: JsonOption = False,
    training: dict[str, Any],
) -> None:
    """Fine-tune a compressed checkpoint into a new one; on several GPUs under torchrun."""
    with reported_errors():
        require_free_output(out, "--out")
        require_writable_directory(resume_dir, "--resume-dir")
        with invalid_settings():
            settings = recovery_settings(loss, training, text_field)
            config = RecoveryConfig.model_validate(settings)
        with show_progress() as on_progress, cancel_on_interrupt() as should_cancel:
            quiet_transformers()
            from intraslice_core.finetuning.recover import recover_model
            from intraslice_core.resume_state import ResumeState

            report = recover_model(
                directory,
                teacher,
                out,
                config,
                dtype=dtype,
                device=device,
                resume_state=ResumeState(directory=resume_dir) if resume_dir else None,
                on_progress=on_progress,
                should_cancel=should_cancel,
            )
        if is_main_process():
            print_report(report, out, as_json=as_json)
