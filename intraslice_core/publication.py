"""Publication of a staged checkpoint: GGUF files, verification, evaluation, manifest, rename.

Nothing is visible under the output's name before everything about it has been checked.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from intraslice_core.checkpoints.manifest import write_manifest
from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.checkpoints.weight_files import weight_bytes
from intraslice_core.checkpoints.wrapped import write_wrapper
from intraslice_core.checkpoints.writer import require_as_written
from intraslice_core.config import (
    GGUF_FILES,
    CompressionConfig,
    EvaluationConfig,
    ExportFormat,
)
from intraslice_core.content_key import content_key
from intraslice_core.cost_model.memory import evaluation_bytes, verification_bytes
from intraslice_core.device import HostMemory, resolve_device, resolve_dtype, rounding_class
from intraslice_core.evaluation.comparison import OUTPUT_MEMORY_BYTES, Materials, evaluate_pair
from intraslice_core.evaluation.saved_scores import SavedScores
from intraslice_core.evaluation.verification import (
    VerificationResult,
    has_llama_cpp,
    verify_checkpoint,
    verify_gguf,
    write_reference,
)
from intraslice_core.export.gguf import write_gguf
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.files import require_free_output
from intraslice_core.modeling import IntraSliceForCausalLM
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.reports.model_card import write_model_card
from intraslice_core.reports.references import (
    local_references,
    public_reference,
    public_settings,
)
from intraslice_core.reports.schema import (
    REPORT_FILE,
    CompressionReport,
    EvaluationReport,
    VerifiedReport,
)
from intraslice_core.residency import place_models
from intraslice_core.run import OpenedModel, Run
from intraslice_core.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from intraslice_core.evaluation.tasks import OpenedTasks


NO_LLAMA_CPP = (
    "{file} was not verified, because llama.cpp is not installed: "
    'pip install "intraslice[llama-cpp]"'
)


UNVERIFIED = "the result was not verified: it was not loaded and compared"


def write_gguf_files(staged: Path, config: CompressionConfig, run: Run) -> None:
    """Write the requested GGUF files beside the checkpoint, from its own files."""
    if not config.gguf_formats or run.reference is None:
        return
    layout = run.reference.form.gguf_layout()
    tokenizer = load_tokenizer(staged)
    adds_bos = list(tokenizer("a")["input_ids"][:1]) == [tokenizer.bos_token_id]
    vocabulary = read_vocabulary(staged, layout.vocab_size, adds_bos=adds_bos)
    for gguf_format in config.gguf_formats:
        run.report(Stage.VERIFY, f"writing {GGUF_FILES[gguf_format]}")
        write_gguf(staged / GGUF_FILES[gguf_format], staged, layout, vocabulary, gguf_format)


def complete_staged(dense: OpenedModel, staged: Path, config: CompressionConfig, run: Run) -> Path:
    """Return the directory to publish: the staged one, or the whole wrapper around its model.

    The language model of a wrapper is put back for target `stock`; GGUF files move there.
    """
    if not bytes_of_wrapper(dense, config):
        return staged
    assert dense.wrapper is not None
    run.report(Stage.EXPORT, "writing the whole multimodal model")
    if run.written is not None:
        require_as_written(staged, run.written)
    complete = staged.with_name("multimodal")
    run.written = write_wrapper(staged, dense.directory, dense.wrapper, complete)
    for gguf_format in config.gguf_formats:
        file = GGUF_FILES[gguf_format]
        (staged / file).rename(complete / file)
    return complete


def bytes_of_wrapper(dense: OpenedModel, config: CompressionConfig) -> int:
    """Return the size in bytes of the dense wrapper if the result is one, else 0."""
    if dense.wrapper is None or config.target != "stock":
        return 0
    return weight_bytes(dense.wrapper)


def verify_staged(
    staged: Path, config: CompressionConfig, run: Run, complete: Path
) -> tuple[VerifiedReport, ...]:
    """Prove that the written files load in clean processes and compute what the model here does.

    Args:
        staged: the compressed model.
        config: of the compression.
        run: of the compression.
        complete: the directory to publish, which is `staged` except for wrappers.

    Raises:
        VerificationError: if the files changed, do not load, or compute something else.
    """
    run.report(Stage.VERIFY, "loading the result in a clean process")
    if run.written is not None:
        require_as_written(complete, run.written)
    model: Any = (
        IntraSliceForCausalLM.from_pretrained(staged, local_files_only=True, dtype=torch.float32)
        if run.reference is None
        else run.reference.model(staged)
    )
    model.to(verification_device(complete, config.device, run))
    write_reference(complete, model, load_tokenizer(complete))
    del model
    results: list[tuple[ExportFormat, VerificationResult]]
    results = [("safetensors", verify_checkpoint(complete, should_cancel=run.should_cancel))]
    for gguf_format in config.gguf_formats:
        file = GGUF_FILES[gguf_format]
        if not has_llama_cpp():
            run.warnings.append(NO_LLAMA_CPP.format(file=file))
            continue
        run.report(Stage.VERIFY, f"loading {file} in llama.cpp", 0.5)
        result = verify_gguf(complete, file, gguf_format, should_cancel=run.should_cancel)
        results.append((gguf_format, result))
    return tuple(verified_report(files, result) for files, result in results)


def verification_device(checkpoint: Path, device: str, run: Run) -> torch.device:
    """Return the device of a verification: the requested one where the checkpoint fits in float32.

    Args:
        checkpoint: directory of the complete checkpoint.
        device: requested device, as in the settings.
        run: its log says where the CPU is used instead.
    """
    with StoredTensors(checkpoint) as stored:
        needed = verification_bytes(stored.parameters)
    placement = place_models(device, needed, "the verification")
    if placement.message is not None:
        run.report(Stage.VERIFY, placement.message)
    return resolve_device(placement.device)


def verified_report(files: ExportFormat, result: VerificationResult) -> VerifiedReport:
    """Return the part of a verification's result that the report keeps."""
    return VerifiedReport(
        files=files,
        loaded_by=result.loaded_by,
        max_abs_difference=result.max_abs_difference,
        tolerance=result.tolerance,
    )


def evaluate_staged(
    pair: tuple[Path, Path],
    report: CompressionReport,
    evaluation: EvaluationConfig,
    tasks: OpenedTasks | None,
    run: Run,
) -> EvaluationReport:
    """Measure the dense and the compressed checkpoint, in this order in `pair`.

    Scores and speeds are measured on the requested device, or on the CPU where the models do not
    fit: one of them for the scores, both for the speeds.
    """
    config = report.config
    run.report(Stage.EVALUATE, "comparing the dense and the compressed model")
    scoring_device, speed_device = _evaluation_devices(report, evaluation, run)

    expected = None if run.durations is None else run.durations.evaluation

    def relay(event: ProgressEvent) -> None:
        run.report(Stage.EVALUATE, event.message, event.fraction)

    return evaluate_pair(
        *pair,
        evaluation,
        dtype=config.dtype,
        device=scoring_device,
        materials=Materials(
            tasks=tasks,
            calibration=run.calibration,
            seen_sources=config.seen_sources,
            dense_scores=run.dense_scores,
            memory=_output_memory(run, pair[1]),
            seconds=None if expected is None else expected.parts,
            saved=_saved_scores(report, evaluation, scoring_device, run),
            speed_device=speed_device,
        ),
        on_progress=relay,
        should_cancel=run.should_cancel,
    )


def _saved_scores(
    report: CompressionReport, evaluation: EvaluationConfig, device: str, run: Run
) -> SavedScores | None:
    """Return the scores that an interrupted run has left; None without a resume state."""
    if run.resume_state is None or run.written is None:
        return None
    key = content_key(
        dense=report.base_fingerprint,
        compressed=run.written.tensors,
        evaluation=evaluation.model_dump(mode="json"),
        dtype=report.config.dtype,
        place=rounding_class(resolve_device(device)),
    )
    return SavedScores(resume_state=run.resume_state, key=key, on_unsaved=run.warn)


def _evaluation_devices(
    report: CompressionReport, evaluation: EvaluationConfig, run: Run
) -> tuple[str, str]:
    """Return the devices of the scores and of the speeds."""
    config = report.config
    stored = round(report.bytes_before / report.params_before)
    stored_dtype = torch.bfloat16 if stored == 2 else torch.float32
    dtype = resolve_dtype(config.dtype, resolve_device(config.device), stored_dtype)
    params = (report.params_before, report.params_after)
    needed = evaluation_bytes(report.geometry, params, evaluation, dtype.itemsize)
    scores = place_models(config.device, needed.scores, "the evaluation")
    speeds = place_models(config.device, needed.speeds, "the measurement of speeds")
    for message in (scores.message, speeds.message if needed.speeds else None):
        if message is not None:
            run.report(Stage.EVALUATE, message)
    return scores.device, speeds.device


def _output_memory(run: Run, staged: Path) -> HostMemory:
    """Return the storage of the dense model's outputs, which the comparison needs."""
    if run.offload_dir is not None:
        return HostMemory(run.offload_dir)
    return HostMemory(staged.parent, memory_bytes=OUTPUT_MEMORY_BYTES)


def publish_staged(staged: Path, out: Path, report: CompressionReport, run: Run) -> None:
    """Add report, model card and manifest, then rename the checkpoint to its final name.

    Raises:
        OutputExistsError: if `out` was created meanwhile.
        OutputNotWritableError: if it can no longer be written.
    """
    run.report(Stage.EXPORT, f"writing {out}")
    (staged / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_model_card(staged, report)
    paths = local_references(report)
    texts = () if report.evaluation is None else report.evaluation.texts
    write_manifest(
        staged,
        {
            "model": report.model,
            "base_fingerprint": report.base_fingerprint,
            "licence": report.base_licence,
            "compression": public_settings(report.config.model_dump(mode="json"), paths),
            "calibration_hash": report.calibration_hash,
            "evaluation": [public_reference(text) for text in texts],
        },
    )
    require_free_output(out)
    staged.replace(out.resolve())  # a link to an empty directory stays a link
    run.finish(f"wrote {out}")


def peak_memory(device: torch.device) -> int:
    """Return this process's peak memory in bytes: GPU memory on CUDA, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak, so that the next run of this process reports its own.

    Peak resident memory can be reset on Linux only; elsewhere it stays that of all runs so far.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no such file outside Linux, and read-only in some containers
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
