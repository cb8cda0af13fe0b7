"""Engine commands of `intraslice`: compress, evaluate and generate without any service.

torch comes in when a command runs, not when the command line is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.interrupts import cancel_on_interrupt
from app.cli.options import (
    DEFAULT,
    DEFAULT_EVALUATION,
    DEFAULT_RECOVERY,
    BenchmarkOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    OffloadOption,
    RecoverRankOption,
    RecoverSecondsOption,
    RecoverSourceOption,
    RecoverTokensOption,
    SpeedGridOption,
    TaskLimitOption,
    TasksOption,
    VerifyOption,
    evaluation_settings,
    listed,
    recovery_settings,
    require_directory,
    speed_grid,
)
from app.cli.progress_display import quiet_transformers, show_progress
from app.cli.quantities import quantity
from app.cli.refusals import explained, refuse_settings
from app.cli.report_tables import (
    comparison_table,
    evaluation_tables,
    load_tables,
    print_tables,
    recovery_table,
    shapes_table,
)
from app.cli.settings_options import Asked, takes_settings
from intraslice_core.config import (
    DEFAULT_RATIO,
    CompressionConfig,
    EvaluationConfig,
    RecoveryConfig,
    RecoveryLoss,
)
from intraslice_core.errors import ConfigurationError
from intraslice_core.reports.plots import shape_plot
from intraslice_core.text_sources import FLATTERS, only_own_kind

if TYPE_CHECKING:
    from intraslice_core.evaluation.tasks import OpenedTasks
    from intraslice_core.reports.schema import CompressionReport, EvaluationReport

_TargetParams = Annotated[
    str | None, typer.Option(metavar="N", help="Parameters of the result: 100M, 1.2G, …")
]
_TargetBytes = Annotated[
    str | None, typer.Option(metavar="N", help="Bytes of the result's weights: 200M, 1.2G, …")
]


def register(app: typer.Typer) -> None:
    """Add the engine's commands to the command line."""
    app.command()(compress)
    app.command()(recover)
    app.command()(evaluate)
    app.command()(generate)


@takes_settings
def compress(  # noqa: PLR0913 (typer reads the options from the signature)
    *,
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    ratio: Annotated[
        float | None,
        typer.Option(
            help=f"Fraction of the compressible parameters to remove; {DEFAULT_RATIO} unless a "
            "target is given."
        ),
    ] = None,
    target_params: _TargetParams = None,
    target_bytes: _TargetBytes = None,
    resume_dir: Annotated[
        Path | None,
        typer.Option(help="Keep finished layers there, and go on from those of a stopped run."),
    ] = None,
    offload_dir: OffloadOption = None,
    verify: VerifyOption = True,
    plot: Annotated[
        Path | None, typer.Option(help="Draw what every layer keeps into this SVG file.")
    ] = None,
    as_json: JsonOption = False,
    asked: Asked,
) -> None:
    """Compress a model into a smaller one that transformers loads."""
    with explained():
        _require_place(plot)
        require_directory(offload_dir, "--offload-dir")
        with refuse_settings():
            config = CompressionConfig.model_validate(
                {
                    "ratio": ratio,
                    "target_params": quantity(target_params, "--target-params"),
                    "target_bytes": quantity(target_bytes, "--target-bytes"),
                    **asked.compression(),
                }
            )
            measured = asked.evaluation()
        places = (resume_dir, offload_dir)
        report = _compress(model, out, config, measured, places=places, verify=verify)
        if plot is not None:
            plot.write_text(shape_plot(report), encoding="utf-8")
        _tell(report, out, as_json)


def _compress(
    model: str,
    out: Path,
    config: CompressionConfig,
    evaluation: EvaluationConfig | None,
    *,
    places: tuple[Path | None, Path | None],
    verify: bool,
) -> CompressionReport:
    """Run the engine under a progress bar; `places` are for resuming and for offloading."""
    resume_dir, offload_dir = places
    with show_progress() as on_progress, cancel_on_interrupt() as should_cancel:
        quiet_transformers()
        from intraslice_core.cache import LayerCheckpoints
        from intraslice_core.pipeline import compress_model

        return compress_model(
            model,
            out,
            config,
            evaluation=evaluation,
            work_dir=None,
            checkpoints=LayerCheckpoints(directory=resume_dir) if resume_dir else None,
            offload_dir=offload_dir,
            verify=verify,
            on_progress=on_progress,
            should_cancel=should_cancel,
        )


def recover(  # noqa: PLR0913 (typer reads the options from the signature)
    directory: Annotated[Path, typer.Argument(help="Compressed checkpoint; it stays as it is.")],
    teacher: Annotated[str, typer.Option(help="The dense model, named as for compress.")],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    loss: Annotated[
        RecoveryLoss, typer.Option(help="Be as the dense model, or predict the text.")
    ] = DEFAULT_RECOVERY.loss,
    tokens: RecoverTokensOption = str(DEFAULT_RECOVERY.max_tokens),
    seconds: RecoverSecondsOption = None,
    rank: RecoverRankOption = DEFAULT_RECOVERY.rank,
    source: RecoverSourceOption = None,
    dtype: DtypeOption = DEFAULT.dtype,
    device: DeviceOption = DEFAULT.device,
    resume_dir: Annotated[
        Path | None, typer.Option(help="Keep the training there, and go on from a stopped one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a compressed checkpoint to win back what was lost, and write it beside it."""
    with explained():
        with refuse_settings():
            config = RecoveryConfig.model_validate(
                recovery_settings(loss, quantity(tokens, "--tokens"), seconds, rank, source)
            )
        with show_progress() as on_progress, cancel_on_interrupt() as should_cancel:
            quiet_transformers()
            from intraslice_core.cache import LayerCheckpoints
            from intraslice_core.finetuning.recover import recover_model

            report = recover_model(
                directory,
                teacher,
                out,
                config,
                dtype=dtype,
                device=device,
                checkpoints=LayerCheckpoints(directory=resume_dir) if resume_dir else None,
                on_progress=on_progress,
                should_cancel=should_cancel,
            )
        _tell(report, out, as_json)


def _tell(report: CompressionReport, out: Path, as_json: bool) -> None:
    """Print what came out."""
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    recovered = [recovery_table(report.recovery)] if report.recovery else []
    loads = load_tables(report.evaluation.speed_grid) if report.evaluation else ()
    print_tables(shapes_table(report), *recovered, comparison_table(report), *loads)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"wrote {out}")


def evaluate(  # noqa: PLR0913 (typer reads the options from the signature)
    directory: Annotated[Path, typer.Argument(help="Compressed checkpoint.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text to score on; repeatable. self and chat need --dense."),
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option(
            "--dense", "--baseline", help="Dense model to compare with, named as for compress."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens a text.")] = DEFAULT_EVALUATION.max_tokens,
    context_length: Annotated[
        int, typer.Option(help="Window of the perplexity.")
    ] = DEFAULT_EVALUATION.context_length,
    tasks: TasksOption = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Task files of your own, with data of your own; code that they name is run.",
        ),
    ] = None,
    limit: TaskLimitOption = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Solved examples before each question of a task.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences of a task at once.")
    ] = DEFAULT.batch_size,
    benchmark: BenchmarkOption = True,
    speed_loads: SpeedGridOption = None,
    dtype: DtypeOption = DEFAULT.dtype,
    device: DeviceOption = DEFAULT.device,
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint; with --dense, against the model it was made from."""
    with explained():
        with refuse_settings():
            config = evaluation_settings(
                text,
                benchmark,
                None,
                max_tokens=max_tokens,
                context_length=context_length,
                tasks=listed(tasks),
                task_limit=limit,
                speed_grid=speed_grid(speed_loads),
            )
        _require_checkpoint(directory)
        _warn_of_flattery(directory, config)
        opened = _open_tasks(config, include_path, num_fewshot, batch_size)
        if dense is None:
            _refuse_loads_alone(config)
            _score_alone(directory, config, opened, (dtype, device), as_json)
            return
        report = _score_pair((dense, directory), config, opened, (dtype, device))
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
        else:
            print_tables(*evaluation_tables(report))


def _open_tasks(
    config: EvaluationConfig, include_path: Path | None, shots: int | None, batch_size: int
) -> OpenedTasks | None:
    """Before any model is loaded."""
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


def _refuse_loads_alone(config: EvaluationConfig) -> None:
    if config.speed_grid:
        raise ConfigurationError(
            "speed is a comparison", field="--speed-grid", hint="give --baseline, too"
        )


def _score_pair(
    pair: tuple[str, Path],
    config: EvaluationConfig,
    tasks: OpenedTasks | None,
    compute: tuple[str, str],
) -> EvaluationReport:
    """Both models on the same texts and tasks."""
    import tempfile

    dense, directory = pair
    with (
        show_progress() as on_progress,
        cancel_on_interrupt() as should_cancel,
        tempfile.TemporaryDirectory(prefix="intraslice-") as scratch,
    ):
        quiet_transformers()
        from intraslice_core.checkpoints.sources import open_model
        from intraslice_core.evaluation.comparison import Materials, evaluate_pair

        return evaluate_pair(
            open_model(dense, Path(scratch)),
            directory,
            config,
            dtype=compute[0],
            device=compute[1],
            materials=Materials(tasks=tasks),
            on_progress=on_progress,
            should_cancel=should_cancel,
        )


def _score_alone(
    directory: Path,
    config: EvaluationConfig,
    tasks: OpenedTasks | None,
    compute: tuple[str, str],
    as_json: bool,
) -> None:
    """One model's perplexity on every text, and its scores in every task."""
    import json
    from dataclasses import asdict

    with show_progress() as on_progress, cancel_on_interrupt() as should_cancel:
        quiet_transformers()
        from intraslice_core.evaluation.comparison import evaluate_one

        scores = evaluate_one(
            directory,
            config,
            dtype=compute[0],
            device=compute[1],
            tasks=tasks,
            on_progress=on_progress,
            should_cancel=should_cancel,
        )
    if as_json:
        typer.echo(json.dumps(asdict(scores)))
        return
    for source, result in scores.perplexity.items():
        typer.echo(f"{source}: perplexity {result.perplexity:.3f}, {result.tokens_scored} tokens")
    for score in scores.tasks:
        error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        told = f"{score.metric} {score.value:.4f}{error}, {score.examples} examples"
        typer.echo(f"{score.task}: {told}")


def generate(
    directory: Annotated[Path, typer.Argument(help="Checkpoint, dense or compressed.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 64,
    dtype: DtypeOption = DEFAULT.dtype,
    device: DeviceOption = DEFAULT.device,
) -> None:
    """Continue a prompt greedily."""
    with explained():
        _require_checkpoint(directory)
        quiet_transformers()
        from transformers import AutoTokenizer

        from intraslice_core.evaluation.loaded_models import load_model

        tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model: Any = load_model(directory, dtype=dtype, device=device)
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(
            **encoded.to(model.device), max_new_tokens=max_new_tokens, do_sample=False
        )
        typer.echo(tokenizer.decode(output[0], skip_special_tokens=True))


def _warn_of_flattery(directory: Path, config: EvaluationConfig) -> None:
    """If the checkpoint's own report says that it knows nothing but such texts."""
    from pydantic import ValidationError

    from intraslice_core.reports.schema import REPORT_FILE, CompressionReport

    try:
        report = CompressionReport.model_validate_json((directory / REPORT_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return  # a dense model, or one that another version has made
    if only_own_kind(report.config.seen_sources, config.perplexity):
        typer.echo(f"warning: {FLATTERS}", err=True)


def _require_place(plot: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    if plot is not None and (plot.is_dir() or not plot.absolute().parent.is_dir()):
        raise ConfigurationError(
            f"{plot} cannot be written",
            field="--plot",
            hint="name a file in a directory that exists",
        )


def _require_checkpoint(directory: Path) -> None:
    """Refuse early, in one line, what transformers would refuse in thirty."""
    from intraslice_core.errors import ModelNotFoundError

    if not (directory / "config.json").is_file():
        raise ModelNotFoundError(
            f"{directory} is no checkpoint: it has no config.json", field="directory"
        )
