"""Recovery fine-tuning within a compression, and of a checkpoint that was compressed earlier."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoConfig

from intraslice_core import modeling
from intraslice_core.calibration import stream_windows, text_prefix
from intraslice_core.checkpoints.manifest import MANIFEST, SIGNATURE
from intraslice_core.checkpoints.model_card import MODEL_CARD
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object, weight_bytes
from intraslice_core.checkpoints.writer import WrittenRecord, require_as_written
from intraslice_core.config import CompressionConfig, RecoveryConfig, TrainingTextConfig
from intraslice_core.cost_model import expected_durations
from intraslice_core.device import repeatable_arithmetic, resolve_device
from intraslice_core.device_memory import out_of_memory_reported
from intraslice_core.errors import (
    ConfigurationError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
)
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.verification import (
    REFERENCE_FILE,
    verify_checkpoint,
    write_reference,
)
from intraslice_core.families.wrappers import wrapper_of
from intraslice_core.files import require_free_output, require_writable_directory
from intraslice_core.finetuning.procedure import (
    TRAINING_FILE,
    RecoveryWork,
    recover_checkpoint,
    train_with_main_process,
    training_file,
)
from intraslice_core.finetuning.processes import Processes
from intraslice_core.finetuning.training import Moment
from intraslice_core.finetuning.training_text import training_text_or_offline
from intraslice_core.progress import (
    CancellationCheck,
    ProgressListener,
    Stage,
    ignore_progress,
    never_cancelled,
    stage_shares,
)
from intraslice_core.publication import (
    peak_memory,
    publish_staged,
    reset_peak_memory,
    verification_device,
    verified_report,
)
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport, VerifiedReport
from intraslice_core.resume_state import ResumeState
from intraslice_core.run import Run
from intraslice_core.scratch import scratch_directory, staging_directory
from intraslice_core.tokenizer import load_tokenizer, require_known_tokens

REWRITTEN_FILES = frozenset({REPORT_FILE, REFERENCE_FILE, MODEL_CARD, MANIFEST, SIGNATURE})
"""Files of a checkpoint that describe its weights and are written again."""


def recover_model(  # noqa: PLR0913  # one call is the whole of it
    compressed: Path,
    teacher: str,
    out: Path,
    config: RecoveryConfig,
    *,
    dtype: str = "auto",
    device: str = "auto",
    resume_state: ResumeState | None = None,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> CompressionReport:
    """Train a compressed checkpoint and write the result beside it.

    Processes of `accelerate launch` or `torchrun` train together: each of them calls this with the
    same arguments. The first one reads the text, measures, saves and writes; the others need
    `compressed` and `teacher` on their machine, too.

    Args:
        compressed: checkpoint that the engine wrote; it is not changed.
        teacher: reference of the dense model, as for a compression.
        out: directory to create; absent or empty.
        config: training settings; without a source it trains on the calibration's sources.
        dtype: compute dtype.
        device: compute device.
        resume_state: directory for the state of an interrupted training.
        on_progress: called with every step.
        should_cancel: called between steps; returning True stops the run.

    Returns:
        The compression's report with the recovery, and without its evaluation, which measured the
        former weights; the same in every process.

    Raises:
        IntraSliceError: one of the tree in `errors.py`; nothing is left in `out`.
    """
    processes = Processes.launched(on_cpu=resolve_device(device).type == "cpu")
    device = processes.device(device)
    if not processes.is_main:
        report = _with_recovery(_read_report(compressed), config)
        with repeatable_arithmetic(resolve_device(device)):
            return _train_with_main_process(compressed, teacher, report, processes, (dtype, device))
    require_free_output(out)
    require_writable_directory(resume_state.directory if resume_state else None, "resume_dir")
    reset_peak_memory(resolve_device(device))
    report = _with_recovery(_read_report(compressed), config)
    run = Run(
        on_progress=on_progress,
        should_cancel=should_cancel,
        resume_state=resume_state,
        shares=stage_shares(_expected_seconds(report)),
    )
    with (
        repeatable_arithmetic(resolve_device(device)),
        run.reporting(),
        scratch_directory("intraslice-") as scratch,
        staging_directory(out) as staging,
    ):
        warnings = (*scratch.warnings, *staging.warnings)
        report = report.model_copy(update={"warnings": (*report.warnings, *warnings)})
        run.report(Stage.LOAD, f"opening {teacher}")
        dense = open_model(teacher, scratch.directory)
        rows = _require_same_vocabulary(dense, compressed)
        used = _read_text(dense, rows, report.config, (dtype, device), staging.directory, run)
        later = {"config": used, "warnings": (*report.warnings, *run.warnings)}
        report = report.model_copy(update=later)
        staged = staging.directory / "checkpoint"
        _copy(compressed, staged)
        reported = len(run.warnings)
        report = recover_staged(
            dense, staged, report, run, dtype=dtype, device=device, processes=processes
        )
        verified = (_verify(staged, device, run),)
        warnings = (*report.warnings, *run.warnings[reported:])
        report = report.model_copy(update={"verified": verified, "warnings": warnings})
        publish_staged(staged, out, report, run)
    return processes.share(report)


def _expected_seconds(report: CompressionReport) -> dict[Stage, float]:
    """Return the expected seconds of each stage of a recovery alone, by the cost model."""
    item_bytes = round(report.bytes_before / report.params_before)
    alone = report.config.model_copy(update={"devices": 1})
    every = expected_durations(report.geometry, alone, None, item_bytes).stages
    others = (Stage.ALLOCATE, Stage.COMPRESS)
    return {stage: seconds for stage, seconds in every.items() if stage not in others}


@out_of_memory_reported("compression.recover.batch_size")
def _train_with_main_process(
    compressed: Path,
    teacher: str,
    report: CompressionReport,
    processes: Processes,
    compute: tuple[str, str],
) -> CompressionReport:
    """Take part in the training of the main process; return its report."""
    config = report.config.recover
    assert config is not None  # set by _with_recovery
    with scratch_directory("intraslice-") as scratch:
        dense = open_model(teacher, scratch.directory)
        _require_same_vocabulary(dense, compressed)
        train_with_main_process(
            RecoveryWork(
                dense=dense,
                compressed=compressed,
                config=config,
                plan=report.plan,
                tokens=torch.empty(0, config.sequence_length, dtype=torch.int32),
                processes=processes,
                prefix=text_prefix(load_tokenizer(dense)),
                dtype=compute[0],
                device=compute[1],
            )
        )
    return processes.share(None)


def recover_staged(
    dense: Path,
    staged: Path,
    report: CompressionReport,
    run: Run,
    *,
    dtype: str,
    device: str,
    processes: Processes | None = None,
) -> CompressionReport:
    """Train the staged checkpoint before it is verified and published.

    `run` holds the training text: it was read before the compression, as it may be too short.

    Raises:
        NumericalError: if the loss is not finite.
        CompressionCancelledError: if the run is to stop.
    """
    config = report.config.recover
    assert config is not None
    assert run.training_text is not None
    run.report(Stage.RECOVER, "measuring before training")

    def before_step(moment: Moment, steps: int) -> None:
        message = f"step {moment.step + 1}/{steps}"
        message += "" if moment.loss is None else f", loss {moment.loss:.3f}"
        run.report(Stage.RECOVER, message, moment.done, seconds_left=moment.seconds_left)

    def remember(record: WrittenRecord) -> None:
        run.written = record

    recovery, warnings = recover_checkpoint(
        RecoveryWork(
            dense=dense,
            compressed=staged,
            config=config,
            plan=report.plan,
            tokens=run.training_text,
            processes=processes or Processes(),
            prefix=text_prefix(load_tokenizer(dense)),
            dtype=dtype,
            device=device,
            resume_state=run.resume_state,
            should_cancel=run.should_cancel,
            before_step=before_step,
            on_merged=remember,
        )
    )
    run.training_text = None
    (staged.parent / TRAINING_FILE).unlink(missing_ok=True)
    return report.model_copy(
        update={
            "recovery": recovery,
            "warnings": (*report.warnings, *warnings),
            "bytes_after": weight_bytes(staged),
            "peak_memory_bytes": peak_memory(resolve_device(device)),
        }
    )


def _read_report(directory: Path) -> CompressionReport:
    try:
        return CompressionReport.model_validate_json((directory / REPORT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        message = f"{directory} is not a compressed checkpoint: {REPORT_FILE} is missing"
    except ValidationError:
        message = f"{directory}: {REPORT_FILE} cannot be read by this version"
    raise ModelNotFoundError(
        message, field="directory", hint="give a directory that `intraslice compress --out` wrote"
    )


def _with_recovery(report: CompressionReport, config: RecoveryConfig) -> CompressionReport:
    """Return the report with the new settings, without what describes the former weights.

    The evaluation and the GGUF files are dropped.
    """
    if report.recovery is not None:
        raise ConfigurationError(
            "the checkpoint has already been recovered",
            field="directory",
            hint="start from the compressed checkpoint and train it on more tokens",
        )
    settings = report.config.model_dump() | {
        "recover": config.model_dump(),
        "exports": ("safetensors",),
    }
    try:
        new_config = CompressionConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigurationError(error.errors()[0]["msg"], field="recover.source") from None
    return report.model_copy(update={"config": new_config, "evaluation": None})


def _require_same_vocabulary(dense: Path, compressed: Path) -> int:
    """Return the vocabulary size; raise if the teacher's differs from the compressed model's."""
    modeling.register()
    wrapper = wrapper_of(read_json_object(compressed / CONFIG_FILE))
    if wrapper is not None:
        raise UnsupportedArchitectureError(
            f"{wrapper.model_type} checkpoints cannot be fine-tuned after their compression",
            field="compressed",
            hint="compress the dense model again with recovery fine-tuning",
        )
    sizes = [
        AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False).vocab_size
        for model in (dense, compressed)
    ]
    if sizes[0] != sizes[1]:
        raise ConfigurationError(
            f"the teacher has {sizes[0]} tokens in its vocabulary, the compressed model {sizes[1]}",
            field="teacher",
            hint="give the dense model that was compressed",
        )
    return int(sizes[0])


def _read_text(
    dense: Path,
    rows: int,
    config: CompressionConfig,
    compute: tuple[str, str],
    place: Path,
    run: Run,
) -> CompressionConfig:
    """Read the training text into the run; return the settings with the sources that were used."""
    run.report(Stage.CALIBRATE, "reading the text to train on")
    tokenizer = load_tokenizer(dense)

    def read(text: TrainingTextConfig, warning: str | None) -> Tensor:
        run.warnings += [] if warning is None else [warning]
        return stream_windows(
            text,
            tokenizer,
            training_file(place, text),
            model=lambda: load_model(dense, dtype=compute[0], device=compute[1]),
            should_cancel=run.should_cancel,
            warnings=run.warnings,
        )

    used, run.training_text = training_text_or_offline(config, read)
    require_known_tokens(run.training_text, rows, tokenizer, "the training text")
    return used


def _copy(compressed: Path, staged: Path) -> None:
    staged.mkdir()
    for file in compressed.rglob("*"):
        if file.is_file() and file.name not in REWRITTEN_FILES and file.suffix != ".gguf":
            target = staged / file.relative_to(compressed)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _verify(staged: Path, device: str, run: Run) -> VerifiedReport:
    """Prove that the written files load in a clean process and compute what the model here does."""
    run.report(Stage.VERIFY, "loading the result in a clean process")
    assert run.written is not None  # set by the training
    require_as_written(staged, run.written)
    place = verification_device(staged, device, run)
    model = load_model(staged, dtype="float32", device=str(place))
    write_reference(staged, model, load_tokenizer(staged))
    del model
    return verified_report(
        "safetensors", verify_checkpoint(staged, should_cancel=run.should_cancel)
    )
