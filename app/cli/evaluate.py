"""`intraslice evaluate`: scores of a checkpoint, alone or against its dense model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import panels
from app.cli.errors import invalid_settings, reported_errors
from app.cli.interrupts import cancel_on_interrupt
from app.cli.options import (
    DEFAULT,
    DEFAULT_EVALUATION,
    BenchmarkOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    SpeedGridOption,
    TaskLimitOption,
    TasksOption,
    TextFieldOption,
    evaluation_settings,
    listed,
    require_checkpoint,
    speed_grid,
)
from app.cli.progress_display import quiet_transformers, show_progress
from app.cli.report_tables import evaluation_tables, print_tables
from intraslice_core.errors import ConfigurationError
from intraslice_core.scratch import scratch_directory
from intraslice_core.text_sources import IN_DOMAIN_ONLY_WARNING, in_domain_only

if TYPE_CHECKING:
    from intraslice_core.config import EvaluationConfig
    from intraslice_core.evaluation.scoring import ModelScores
    from intraslice_core.evaluation.tasks import OpenedTasks
    from intraslice_core.reports.schema import EvaluationReport

_TextOption = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=panels.EVALUATION,
        help="Text on which the perplexity is measured, named as for --calibration of compress; "
        "repeatable. self and chat need --dense.",
        show_default=", ".join(DEFAULT_EVALUATION.perplexity),
    ),
]
_DenseOption = Annotated[
    str | None,
    typer.Option(
        "--dense",
        "--baseline",
        rich_help_panel=panels.MODEL,
        help="Dense model to compare with, named as for compress.",
        show_default="no comparison",
    ),
]
_IncludeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        rich_help_panel=panels.EVALUATION,
        help="Directory of additional task files with their data; code that they refer to is "
        "executed.",
        show_default="none",
    ),
]
_FewshotOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        rich_help_panel=panels.EVALUATION,
        help="Number of solved examples before each question of a task (0 or more).",
        show_default="the task's own",
    ),
]


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A checkpoint and how it is evaluated."""

    directory: Path
    config: EvaluationConfig
    tasks: OpenedTasks | None
    dtype: str
    device: str
    seen_sources: tuple[str, ...] | None
    """Sources of the calibration and fine-tuning text; None where no report names them."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)


def evaluate(  # noqa: PLR0913 (typer reads the options from the signature)
    directory: Annotated[
        Path, typer.Argument(rich_help_panel=panels.MODEL, help="Checkpoint, dense or compressed.")
    ],
    text: _TextOption = None,
    text_field: TextFieldOption = None,
    dense: _DenseOption = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            rich_help_panel=panels.EVALUATION,
            help="Largest number of tokens scored per text (64 or more).",
        ),
    ] = DEFAULT_EVALUATION.max_tokens,
    context_length: Annotated[
        int,
        typer.Option(
            rich_help_panel=panels.EVALUATION,
            help="Context window of the perplexity in tokens (16 or more).",
        ),
    ] = DEFAULT_EVALUATION.context_length,
    tasks: TasksOption = None,
    include_path: _IncludeOption = None,
    limit: TaskLimitOption = None,
    num_fewshot: _FewshotOption = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel=panels.EVALUATION,
            help="Number of task sequences per forward pass (1 or more).",
        ),
    ] = DEFAULT.batch_size,
    benchmark: BenchmarkOption = True,
    speed_loads: SpeedGridOption = None,
    dtype: DtypeOption = DEFAULT.dtype,
    device: DeviceOption = DEFAULT.device,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a checkpoint, with --dense against its dense model."""
    with reported_errors():
        with invalid_settings():
            config = evaluation_settings(
                text,
                benchmark,
                None,
                text_field=text_field,
                max_tokens=max_tokens,
                context_length=context_length,
                tasks=listed(tasks),
                task_limit=limit,
                speed_grid=speed_grid(speed_loads),
            )
        require_checkpoint(directory)
        seen_sources = _seen_sources(directory)
        if seen_sources is not None and in_domain_only(seen_sources, config.perplexity):
            typer.echo(f"warning: {IN_DOMAIN_ONLY_WARNING}", err=True)
        _warn_if_beyond_context(directory, config)
        opened = _open_tasks(config, include_path, num_fewshot, batch_size)
        work = _Work(
            directory=directory,
            config=config,
            tasks=opened,
            dtype=dtype,
            device=device,
            seen_sources=seen_sources,
        )
        if dense is None:
            _evaluate_alone(work, as_json=as_json)
        else:
            _compare(work, dense, as_json=as_json)


def _open_tasks(
    config: EvaluationConfig, include_path: Path | None, shots: int | None, batch_size: int
) -> OpenedTasks | None:
    """Load the tasks' data, before any model is loaded."""
    if not config.tasks:
        return None
    from intraslice_core.evaluation.tasks import open_tasks

    return open_tasks(
        config.tasks,
        include_path=include_path,
        limit=config.task_limit,
        shots=shots,
        batch_size=batch_size,
    )


def _seen_sources(directory: Path) -> tuple[str, ...] | None:
    """Return the sources of the text that the checkpoint was calibrated or fine-tuned on."""
    from pydantic import ValidationError

    from intraslice_core.reports.schema import REPORT_FILE, CompressionReport

    try:
        report = CompressionReport.model_validate_json((directory / REPORT_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # a dense model, or a checkpoint of another version
    return report.config.seen_sources


def _warn_if_beyond_context(directory: Path, config: EvaluationConfig) -> None:
    """Warn if windows or prompts are longer than the model's context."""
    from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object
    from intraslice_core.context_length import beyond_context, context_of

    context = context_of(read_json_object(directory / CONFIG_FILE))
    for warning in beyond_context(context, None, config):
        typer.echo(f"warning: {warning}", err=True)


def _compare(work: _Work, dense: str, *, as_json: bool) -> None:
    """Evaluate the dense model and the checkpoint on the same texts and tasks."""
    report = _evaluate_pair(work, dense)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_tables(*evaluation_tables(report))


def _evaluate_pair(work: _Work, dense: str) -> EvaluationReport:
    with (
        show_progress() as on_progress,
        cancel_on_interrupt() as should_cancel,
        scratch_directory("intraslice-") as scratch,
    ):
        for warning in scratch.warnings:
            typer.echo(f"warning: {warning}", err=True)
        quiet_transformers()
        from intraslice_core.checkpoints.sources import open_model
        from intraslice_core.device import HostMemory
        from intraslice_core.evaluation.comparison import (
            OUTPUT_MEMORY_BYTES,
            Materials,
            evaluate_pair,
        )

        memory = HostMemory(scratch.directory, memory_bytes=OUTPUT_MEMORY_BYTES)
        return evaluate_pair(
            open_model(dense, scratch.directory / "dense"),
            # Of a multimodal result the language model is compared, as it is compressed.
            open_model(str(work.directory), scratch.directory / "compressed"),
            work.config,
            dtype=work.dtype,
            device=work.device,
            materials=Materials(tasks=work.tasks, seen_sources=work.seen_sources, memory=memory),
            on_progress=on_progress,
            should_cancel=should_cancel,
        )


def _evaluate_alone(work: _Work, *, as_json: bool) -> None:
    """Print one model's perplexity on every text and its scores in every task.

    Raises:
        ConfigurationError: if speed is to be measured, which needs two models.
    """
    if work.config.speed_grid:
        raise ConfigurationError(
            "speed is measured as a comparison of two models",
            field="--speed-grid",
            hint="add --dense MODEL",
        )
    with show_progress() as on_progress, cancel_on_interrupt() as should_cancel:
        quiet_transformers()
        from intraslice_core.evaluation.comparison import evaluate_one

        scores = evaluate_one(
            work.directory,
            work.config,
            dtype=work.dtype,
            device=work.device,
            tasks=work.tasks,
            on_progress=on_progress,
            should_cancel=should_cancel,
        )
    if as_json:
        typer.echo(json.dumps(asdict(scores)))
    else:
        _print_scores(scores)


def _print_scores(scores: ModelScores) -> None:
    for source, result in scores.perplexity.items():
        typer.echo(f"{source}: perplexity {result.perplexity:.3f}, {result.tokens_scored} tokens")
    for score in scores.tasks:
        error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        typer.echo(
            f"{score.task}: {score.metric} {score.value:.4f}{error}, {score.examples} examples"
        )
