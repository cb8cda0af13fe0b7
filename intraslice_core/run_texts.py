"""Calibration and fine-tuning sequences of a run: saved ones, or read and written anew.

The default mixture goes without web text where the hub cannot be reached. The settings are then
those of the offline mixture, so that report, keys and later stages state what was used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from intraslice_core.calibration import (
    ReadTokens,
    TextToWrite,
    WritingListener,
    WritingProgress,
    calibration_tokens,
    stream_windows,
    write_with_main,
)
from intraslice_core.config import CalibrationConfig, CompressionConfig, TrainingTextConfig
from intraslice_core.content_key import calibration_facts
from intraslice_core.device import return_free_memory
from intraslice_core.errors import WebTextError
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.finetuning.procedure import training_file
from intraslice_core.finetuning.training_text import training_text_or_offline
from intraslice_core.layer_loop import CompressionWork
from intraslice_core.progress import Stage
from intraslice_core.ranks import MAIN
from intraslice_core.run import Run
from intraslice_core.tokenizer import load_tokenizer, require_known_tokens


def shared_calibration_text(
    work: CompressionWork, dense: Path, run: Run
) -> tuple[CompressionWork, Tensor]:
    """Return the work with the mixture that was used, and its sequences, on all ranks.

    The main rank reads; text that the model writes is written by all.

    Raises:
        CalibrationError: if the text cannot be read or is too short.
    """
    if not run.ranks.is_main:
        config, tokens = _write_with_main(work, dense, run)
        return replace(work, config=config), tokens

    def read() -> tuple[CompressionConfig, Tensor]:
        used, sequences = read_calibration_text(work, dense, run)
        return used.config, sequences

    config, tokens = run.ranks.computed(MAIN, read)
    return replace(work, config=config), tokens


def _write_with_main(
    work: CompressionWork, dense: Path, run: Run
) -> tuple[CompressionConfig, Tensor]:
    """Write this rank's share of all text until the main rank has every sequence.

    Returns:
        The settings with the mixture that was used, and the sequences.
    """
    while True:
        message = run.ranks.receive(MAIN)
        if not isinstance(message, TextToWrite):
            config, tokens = message
            return config, tokens
        model = load_model(dense, dtype=work.config.dtype, device=str(work.device))
        write_with_main(
            message, model, load_tokenizer(dense), run.ranks, should_cancel=run.should_cancel
        )
        del model
        return_free_memory()


def read_calibration_text(
    work: CompressionWork, dense: Path, run: Run
) -> tuple[CompressionWork, Tensor]:
    """Return the work with the mixture that was used, and its sequences.

    A resumed run, and every ratio of a sweep, keeps the mixture that it began with.

    Returns:
        The work, and the calibration sequences, (samples, sequence_length).

    Raises:
        CalibrationError: if the text cannot be read or is too short.
    """
    if not work.config.calibration.web_is_optional:
        return work, _calibration_text(work, dense, run)
    offline = replace(work, config=work.config.without_web())
    if _is_saved(offline):
        return offline, _calibration_text(offline, dense, run)
    try:
        return work, _calibration_text(work, dense, run)
    except WebTextError as error:
        warning = f"the calibration is without web text: {error.message}"
        return offline, _calibration_text(offline, dense, run, warning)


def read_training_text(
    work: CompressionWork, dense: Path, place: Path, run: Run
) -> tuple[CompressionWork, Tensor | None]:
    """Return the work with the fine-tuning text that was used, and its sequences.

    They are read before the compression, as they may be too few.

    Args:
        work: settings of the compression.
        dense: dense model.
        place: directory of the file from which the sequences are mapped.
        run: state of the run.

    Returns:
        The work, and the sequences, (n, sequence_length); None without fine-tuning.

    Raises:
        CalibrationError: if the text cannot be read or is too short.
    """
    if work.config.recover is None:
        return work, None
    run.report(Stage.CALIBRATE, "reading the text to train on", 0.5)

    def read_saved(settings: TrainingTextConfig, warning: str | None) -> Tensor:
        read = _reader(
            work, settings, dense, run, file=training_file(place, settings), warning=warning
        )
        if work.resume_state is None:
            return read(run.warnings)
        key = work.key(**calibration_facts(settings), prefix=work.prefix, streamed=True)
        return work.resume_state.recovery_tokens(key, read, run.warnings)

    config, tokens = training_text_or_offline(work.config, read_saved)
    return replace(work, config=config), tokens


def _calibration_text(
    work: CompressionWork, dense: Path, run: Run, warning: str | None = None
) -> Tensor:
    """Return the sequences of the work's own settings; the warning is saved with them."""
    settings = work.config.resolved_calibration
    sources = ", ".join(source.source for source in settings.mixture)
    run.report(Stage.CALIBRATE, f"reading calibration text: {sources}")
    read = _reader(work, settings, dense, run, warning=warning)
    if work.resume_state is None:
        return read(run.warnings)
    key = work.key(**_facts(work))
    return work.resume_state.tokens(key, read, run.warnings)


def _writing_listener(work: CompressionWork, run: Run) -> WritingListener:
    """Return a listener that reports the tokens that the model writes as progress of the stage.

    A text to train on follows in the same stage; the remaining time of the stage is then unknown.
    """
    last = work.config.recover is None

    def report(progress: WritingProgress) -> None:
        run.report(
            Stage.CALIBRATE,
            f"writing calibration text: {progress.counts}",
            progress.tokens / progress.total * (1.0 if last else 0.5),
            seconds_left=progress.seconds_left if last else None,
        )

    return report


def _facts(work: CompressionWork) -> dict[str, object]:
    return {**calibration_facts(work.config.resolved_calibration), "prefix": work.prefix}


def _is_saved(work: CompressionWork) -> bool:
    """Report whether an earlier run saved the calibration sequences of these settings."""
    facts, state, statistics = _facts(work), work.resume_state, work.statistics
    if state is not None and state.has_tokens(work.key(**facts)):
        return True
    return statistics is not None and statistics.has_tokens(facts)


def _reader(
    work: CompressionWork,
    settings: CalibrationConfig,
    dense: Path,
    run: Run,
    *,
    file: Path | None = None,
    warning: str | None = None,
) -> ReadTokens:
    """Return a function that loads the sequences from the statistics cache, or reads them.

    Some sources are text that the dense model itself generates. With a file the sequences are
    streamed to it.
    """
    tokenizer = load_tokenizer(dense)
    facts = {**calibration_facts(settings), "prefix": work.prefix}
    read_windows: Callable[..., Tensor]
    if file is None:
        read_windows = partial(
            calibration_tokens, on_writing=_writing_listener(work, run), ranks=run.ranks
        )
    else:
        facts["streamed"] = True
        read_windows = partial(stream_windows, file=file)

    def load_dense() -> PreTrainedModel:
        return load_model(dense, dtype=work.config.dtype, device=str(work.device))

    def read(warnings: list[str]) -> Tensor:
        warnings += [] if warning is None else [warning]
        tokens = read_windows(
            settings,
            tokenizer,
            model=load_dense,
            should_cancel=run.should_cancel,
            warnings=warnings,
        )
        names = ", ".join(source.source for source in settings.mixture)
        require_known_tokens(tokens, work.canonical["vocab_size"], tokenizer, names)
        return tokens

    def load_or_read(warnings: list[str]) -> Tensor:
        return (
            read(warnings)
            if work.statistics is None
            else work.statistics.tokens(facts, read, warnings)
        )

    return load_or_read
