"""`intraslice recover`: recovery fine-tuning of a compressed checkpoint, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.errors import invalid_settings, reported_errors
from app.cli.interrupts import cancel_on_interrupt
from app.cli.options import (
    DEFAULT,
    DEFAULT_RECOVERY,
    DeviceOption,
    DtypeOption,
    JsonOption,
    OutOption,
    RecoverRankOption,
    RecoverSecondsOption,
    RecoverSourceOption,
    RecoverTokensOption,
    TextFieldOption,
    recovery_settings,
)
from app.cli.progress_display import quiet_transformers, show_progress
from app.cli.quantities import quantity
from app.cli.report_tables import print_report
from intraslice_core.config import Adapter, RecoveryConfig, RecoveryLoss
from intraslice_core.files import require_free_output, require_writable_directory

_LossOption = Annotated[
    RecoveryLoss,
    typer.Option(
        help="Fine-tuning loss: distill (KL divergence to the dense model), ce (cross-entropy on "
        "the text) or hidden (error of the hidden states after every layer)."
    ),
]
_AdapterOption = Annotated[
    Adapter,
    typer.Option(help="Trained parameters: lora or dora (merged adapters), or none (all weights)."),
]
_LearningRateOption = Annotated[
    float | None,
    typer.Option(
        help="Peak learning rate (above 0, at most 1).",
        show_default="1e-3, or 1e-4 for all weights",
    ),
]
_BatchOption = Annotated[
    int, typer.Option(help="Sequences per forward pass of each process (1 to 4096).")
]
_AccumulationOption = Annotated[
    int, typer.Option(help="Forward passes of each process per training step (1 to 4096).")
]
_ResumeOption = Annotated[
    Path | None,
    typer.Option(
        help="Keep the training state in this directory, and resume an interrupted run from it.",
        show_default="none",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(recover)


def recover(  # noqa: PLR0913 (typer reads the options from the signature)
    directory: Annotated[Path, typer.Argument(help="Compressed checkpoint; it is not changed.")],
    teacher: Annotated[
        str, typer.Option(help="Dense model that it was made from, named as for compress.")
    ],
    out: OutOption,
    loss: _LossOption = DEFAULT_RECOVERY.loss,
    tokens: RecoverTokensOption = str(DEFAULT_RECOVERY.max_tokens),
    seconds: RecoverSecondsOption = None,
    adapter: _AdapterOption = DEFAULT_RECOVERY.adapter,
    rank: RecoverRankOption = DEFAULT_RECOVERY.rank,
    learning_rate: _LearningRateOption = None,
    batch_size: _BatchOption = DEFAULT_RECOVERY.batch_size,
    gradient_accumulation: _AccumulationOption = DEFAULT_RECOVERY.gradient_accumulation,
    source: RecoverSourceOption = None,
    text_field: TextFieldOption = None,
    dtype: DtypeOption = DEFAULT.dtype,
    device: DeviceOption = DEFAULT.device,
    resume_dir: _ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a compressed checkpoint into a new one; on several GPUs under torchrun."""
    with reported_errors():
        require_free_output(out, "--out")
        require_writable_directory(resume_dir, "--resume-dir")
        with invalid_settings():
            limit = quantity(tokens, "--tokens")
            settings = recovery_settings(loss, limit, seconds, rank, source, text_field) or {}
            settings |= {
                "adapter": adapter,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "gradient_accumulation": gradient_accumulation,
            }
            config = RecoveryConfig.model_validate(settings)
        with show_progress() as on_progress, cancel_on_interrupt() as should_cancel:
            quiet_transformers()
            from intraslice_core.finetuning.processes import is_main_process
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
