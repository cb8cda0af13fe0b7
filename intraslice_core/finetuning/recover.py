"""A recovery of a checkpoint that was compressed before: the same training, some other day."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError
from transformers import AutoConfig, AutoTokenizer

from intraslice_core import modeling
from intraslice_core.cache import LayerCheckpoints
from intraslice_core.calibration import calibration_tokens
from intraslice_core.checkpoints.manifest import MANIFEST, SIGNATURE
from intraslice_core.checkpoints.model_card import CARD
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.checkpoints.writer import (
    WrittenRecord,
    require_as_written,
    require_free_output,
)
from intraslice_core.config import CompressionConfig, RecoveryConfig
from intraslice_core.device import resolve_device
from intraslice_core.errors import ConfigurationError, ModelNotFoundError
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.verification import (
    REFERENCE_FILE,
    verify_checkpoint,
    write_reference,
)
from intraslice_core.finetuning.procedure import RecoveryWork, blaming_recover, recover_checkpoint
from intraslice_core.finetuning.training import Moment
from intraslice_core.progress import (
    CancellationCheck,
    ProgressListener,
    Stage,
    ignore_progress,
    never_cancelled,
    shares_of,
)
from intraslice_core.publication import peak_memory, publish_staged, verified_report, weight_bytes
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport, VerifiedReport
from intraslice_core.run import Run

MADE_AGAIN = frozenset({REPORT_FILE, REFERENCE_FILE, CARD, MANIFEST, SIGNATURE})
"""Of a checkpoint's files, those that tell of the weights."""


def recover_model(  # noqa: PLR0913  # one call is the whole of it
    compressed: Path,
    teacher: str,
    out: Path,
    config: RecoveryConfig,
    *,
    dtype: str = "auto",
    device: str = "auto",
    checkpoints: LayerCheckpoints | None = None,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> CompressionReport:
    """Train a compressed checkpoint and write the result beside it.

    Args:
        compressed: a directory that the engine has made; it stays as it is.
        teacher: the dense model, named as for a compression.
        out: the directory to make; absent or empty.
        config: how to train; without a source, on what the compression was calibrated on.
        dtype: compute dtype.
        device: where.
        checkpoints: where an interrupted training is kept.
        on_progress: hears every step.
        should_cancel: asked between steps.

    Returns:
        The compression's report with the recovery, and without an evaluation: it was of the
        weights before.

    Raises:
        IntraSliceError: one of the tree in `errors.py`; nothing is left behind then.
    """
    require_free_output(out)
    report = _with_recovery(_read_report(compressed), config)
    run = Run(
        on_progress=on_progress,
        should_cancel=should_cancel,
        checkpoints=checkpoints,
        shares=shares_of(recover=True),
    )
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="intraslice-") as scratch,
        tempfile.TemporaryDirectory(prefix=f".{out.name}.staging-", dir=parent) as staging,
    ):
        run.report(Stage.LOAD, f"opening {teacher}")
        dense = open_model(teacher, Path(scratch))
        _require_alike(dense, compressed)
        _read_text(dense, report.config, (dtype, device), run)
        staged = Path(staging) / "checkpoint"
        _copy(compressed, staged)
        report = recover_staged(dense, staged, report, run, dtype=dtype, device=device)
        report = report.model_copy(update={"verified": (_verify(staged, run),)})
        publish_staged(staged, out, report, run)
    return report


def recover_staged(
    dense: Path, staged: Path, report: CompressionReport, run: Run, *, dtype: str, device: str
) -> CompressionReport:
    """Train the staged checkpoint; what is verified and published is the result of that.

    The text to train on is in `run` already: read before the compression, as it may be too short.

    Raises:
        NumericalError: if the loss is not finite.
        CompressionCancelledError: if asked to stop.
    """
    config = report.config.recover
    assert config is not None
    assert run.training_text is not None
    run.report(Stage.RECOVER, "measuring before the training")

    def before_step(moment: Moment, steps: int) -> None:
        told = f"step {moment.step + 1}/{steps}"
        told += "" if moment.loss is None else f", loss {moment.loss:.3f}"
        run.report(Stage.RECOVER, told, moment.done, seconds_left=moment.seconds_left)

    def keep(record: WrittenRecord) -> None:
        run.written = record

    found, troubles = recover_checkpoint(
        RecoveryWork(
            dense=dense,
            compressed=staged,
            config=config,
            tokens=run.training_text.clone(),  # made in inference mode, which no graph takes
            dtype=dtype,
            device=device,
            checkpoints=run.checkpoints,
            should_cancel=run.should_cancel,
            before_step=before_step,
            on_merged=keep,
        )
    )
    run.training_text = None
    return report.model_copy(
        update={
            "recovery": found,
            "warnings": (*report.warnings, *troubles),
            "bytes_after": weight_bytes(staged),
            "peak_memory_bytes": peak_memory(resolve_device(device)),
        }
    )


def _read_report(directory: Path) -> CompressionReport:
    try:
        return CompressionReport.model_validate_json((directory / REPORT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        message = f"{directory} is no compressed checkpoint: it has no {REPORT_FILE}"
    except ValidationError:
        message = f"{directory}: {REPORT_FILE} is not one that this version writes"
    raise ModelNotFoundError(
        message, field="directory", hint="name what `intraslice compress --out` has made"
    )


def _with_recovery(report: CompressionReport, config: RecoveryConfig) -> CompressionReport:
    """The report as it is before the training; what was measured of the old weights is gone.

    And so are GGUF files, which hold them.
    """
    if report.recovery is not None:
        raise ConfigurationError(
            "the checkpoint was recovered before",
            field="directory",
            hint="begin with one that was not, and give it more tokens",
        )
    settings = report.config.model_dump() | {
        "recover": config.model_dump(),
        "exports": ("safetensors",),
    }
    try:
        wanted = CompressionConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigurationError(error.errors()[0]["msg"], field="recover.source") from None
    return report.model_copy(update={"config": wanted, "evaluation": None})


def _require_alike(dense: Path, compressed: Path) -> None:
    """Refuse a teacher that speaks another vocabulary, before anything is trained."""
    modeling.register()
    sizes = [
        AutoConfig.from_pretrained(one, local_files_only=True, trust_remote_code=False).vocab_size
        for one in (dense, compressed)
    ]
    if sizes[0] != sizes[1]:
        raise ConfigurationError(
            f"the teacher knows {sizes[0]} tokens, the compressed model {sizes[1]}",
            field="teacher",
            hint="name the model that was compressed",
        )


def _read_text(dense: Path, config: CompressionConfig, compute: tuple[str, str], run: Run) -> None:
    assert config.recover is not None  # put there a moment ago
    run.report(Stage.CALIBRATE, "reading the text to train on")
    with blaming_recover():
        run.training_text = calibration_tokens(
            config.recover.text(config.calibration),
            AutoTokenizer.from_pretrained(dense, local_files_only=True, trust_remote_code=False),
            model=lambda: load_model(dense, dtype=compute[0], device=compute[1]),
            should_cancel=run.should_cancel,
        )


def _copy(compressed: Path, staged: Path) -> None:
    staged.mkdir()
    for file in compressed.iterdir():
        if file.is_file() and file.name not in MADE_AGAIN and file.suffix != ".gguf":
            shutil.copyfile(file, staged / file.name)


def _verify(staged: Path, run: Run) -> VerifiedReport:
    """Prove that the written files load in a clean process and act like the model here."""
    run.report(Stage.VERIFY, "loading the result in a clean process")
    assert run.written is not None  # by the training
    require_as_written(staged, run.written)
    model = load_model(staged, dtype="float32", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(
        staged, local_files_only=True, trust_remote_code=False
    )
    write_reference(staged, model, tokenizer)
    del model
    return verified_report(
        "safetensors", verify_checkpoint(staged, should_cancel=run.should_cancel)
    )
