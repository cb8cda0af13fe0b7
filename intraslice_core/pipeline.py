"""The pipeline of a compression: open, calibrate, allocate, compress, verify, evaluate, publish.

Weights are compressed and written one layer at a time, while the next is read from disk; the hidden
states of the calibration sequences stay in memory, on a GPU where they fit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import intraslice_core
from intraslice_core.allocation.residual_width import shortcut_warnings
from intraslice_core.allocation.shapes import Shapes, choose_shapes
from intraslice_core.blocked import factorising_in_place
from intraslice_core.calibration import calibration_hash
from intraslice_core.checkpoints.manifest import model_fingerprint
from intraslice_core.checkpoints.model_card import base_licence
from intraslice_core.checkpoints.reader import CheckpointReader, check_finite
from intraslice_core.checkpoints.sources import open_directory
from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object, weight_bytes
from intraslice_core.checkpoints.writer import CheckpointWriter, ensure_disk_space
from intraslice_core.config import (
    AUTO,
    UNLIMITED,
    CompressionConfig,
    EvaluationConfig,
    ModelLimits,
)
from intraslice_core.content_key import content_key
from intraslice_core.context_length import beyond_context, context_of
from intraslice_core.cost_model import machine_rates
from intraslice_core.cost_model.memory import dense_output_bytes
from intraslice_core.device import (
    advising_bfloat16,
    bound_allocator,
    device_class,
    gpu_class_of,
    repeatable_arithmetic,
    resolve_device,
    return_free_memory,
)
from intraslice_core.evaluation.comparison import open_requested_tasks
from intraslice_core.evaluation.texts import check_texts
from intraslice_core.export.form import WrittenReference
from intraslice_core.export.targets import runtimes
from intraslice_core.families.canonical import renumbered
from intraslice_core.families.positions import learned_positions, require_lengths
from intraslice_core.families.wrappers import describe_result
from intraslice_core.files import require_free_output, require_writable_directory
from intraslice_core.finetuning.recover import recover_staged
from intraslice_core.launcher import current_launch
from intraslice_core.layer_loop import CompressionWork, LayerLoop
from intraslice_core.methods import fixed_method
from intraslice_core.plan import dense_parameters, total_parameters
from intraslice_core.planned_work import allocation_context, plan_work
from intraslice_core.progress import (
    CancellationCheck,
    ProgressListener,
    Stage,
    ignore_progress,
    never_cancelled,
    shares_of,
)
from intraslice_core.publication import (
    UNVERIFIED,
    bytes_of_wrapper,
    complete_staged,
    evaluate_staged,
    peak_memory,
    publish_staged,
    reset_peak_memory,
    verify_staged,
    write_gguf_files,
)
from intraslice_core.rank_connection import connected_ranks, require_launched_devices
from intraslice_core.rank_processes import RankRequest, run_on_ranks
from intraslice_core.ranks import MAIN
from intraslice_core.reports.references import recorded_reference
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.residual_loop import ResidualLoop
from intraslice_core.result_form import result_form, sliced_config
from intraslice_core.resume_state import FinishedLayer, ResumeState
from intraslice_core.run import OpenedModel, Run
from intraslice_core.run_texts import read_training_text, shared_calibration_text
from intraslice_core.scratch import scratch_directory, staging_directory
from intraslice_core.stage_speeds import StageSpeeds
from intraslice_core.statistics_cache import StatisticsCache
from intraslice_core.tokenizer import load_tokenizer
from intraslice_core.tournament import choose_method


def compress_model(  # noqa: PLR0913  # one call is the whole engine
    model: str,
    out: Path,
    config: CompressionConfig,
    *,
    evaluation: EvaluationConfig | None = None,
    limits: ModelLimits = UNLIMITED,
    work_dir: Path | None = None,
    statistics_cache: StatisticsCache | None = None,
    resume_state: ResumeState | None = None,
    offload_dir: Path | None = None,
    speeds: StageSpeeds | None = None,
    verify: bool = True,
    uploads: bool = False,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> CompressionReport:
    """Compress a model into a directory that transformers loads.

    With several devices, a process for each of them is started, unless a launcher already has.

    Args:
        model: a directory of safetensors, a `.gguf` file, `hub:org/name[@revision]` or
            `package:NAME`.
        out: directory to create; absent or empty.
        config: method, target, budget, calibration and everything else about the compression.
        evaluation: measurements to take afterwards; None takes none.
        limits: largest model that is accepted.
        work_dir: directory for converted models; a temporary one by default.
        statistics_cache: statistics shared with runs of the same model at other ratios.
        resume_state: files of an interrupted run to resume from, and of this one; the caller
            removes them.
        offload_dir: directory for hidden states in unnamed temporary files instead of in memory.
        speeds: speeds of earlier runs, from which the remaining time is known sooner; updated.
        verify: load the result in a clean process; needs memory for all of it in float32.
        uploads: the caller uploads the result; the progress keeps a share for it.
        on_progress: called with every step.
        should_cancel: called between batches; returning True stops the run.

    Returns:
        The report, which is also stored in the checkpoint.

    Raises:
        IntraSliceError: one of the tree in `errors.py`; nothing is left in `out`.
    """
    require_launched_devices(config)
    if config.devices > 1 and current_launch() is None:
        request = RankRequest(
            model=model,
            out=out,
            config=config,
            evaluation=evaluation,
            limits=limits,
            work_dir=work_dir,
            statistics_cache=statistics_cache,
            resume_state=resume_state,
            offload_dir=offload_dir,
            speeds=speeds,
            verify=verify,
            uploads=uploads,
        )
        return run_on_ranks(request, on_progress=on_progress, should_cancel=should_cancel)
    bound_allocator()
    with connected_ranks(resolve_device(config.device)) as ranks:
        reset_peak_memory(resolve_device(ranks.device_name(config.device)))
        if not ranks.is_main:
            other = Run(
                on_progress=ignore_progress,
                should_cancel=should_cancel,
                offload_dir=offload_dir,
                ranks=ranks,
            )
            return _compress_with_main(other)
        run = Run(
            on_progress=on_progress,
            should_cancel=should_cancel,
            statistics_cache=statistics_cache,
            resume_state=resume_state,
            offload_dir=offload_dir,
            speeds=speeds,
            verify=verify,
            uploads=uploads,
            ranks=ranks,
        )
        require_free_output(out)
        require_writable_directory(work_dir, "work_dir")
        require_writable_directory(offload_dir, "offload_dir")
        require_writable_directory(resume_state.directory if resume_state else None, "resume_dir")
        with scratch_directory("intraslice-", work_dir) as scratch:
            run.warnings.extend(scratch.warnings)
            run.report(Stage.LOAD, f"opening {model}")
            with run.reporting():
                source = open_directory(model, scratch.directory, limits)
            opened = OpenedModel(reference=model, directory=source.path, wrapper=source.wrapper)
            report = compress_opened(opened, out, config, evaluation, run)
        return ranks.computed(MAIN, lambda: report)


def _compress_with_main(run: Run) -> CompressionReport:
    """Take part in the work of the main rank, which begins with the opened model.

    Returns:
        The report of the main rank.
    """
    _compress_share(run)
    return_free_memory()  # while the main rank fine-tunes, verifies, evaluates and publishes
    report: CompressionReport = run.ranks.receive(MAIN)
    return report


def _compress_share(run: Run) -> None:
    """Pass this rank's share of the sequences through all layers."""
    dense, config = run.ranks.receive(MAIN)
    device = resolve_device(run.ranks.device_name(config.device))
    with (
        repeatable_arithmetic(device),
        run.reporting(),
        CheckpointReader(dense.directory) as reader,
        torch.inference_mode(),
    ):
        work = plan_work(reader, dense, config, run)
        precision = advising_bfloat16(work.dtype, work.device)
        with precision, factorising_in_place(active=work.in_place):
            work, tokens = shared_calibration_text(work, dense.directory, run)
            shapes = choose_shapes(allocation_context(work, run), tokens)
            return_free_memory()
            loop = _loop(work, tokens, shapes, run)
            for layer in range(work.geometry.num_hidden_layers):
                loop.finish(layer)
                return_free_memory()


def compress_opened(
    dense: OpenedModel,
    out: Path,
    config: CompressionConfig,
    evaluation: EvaluationConfig | None,
    run: Run,
) -> CompressionReport:
    """Compress a model that is already open, for callers that compress it several times.

    Raises:
        IntraSliceError: one of the tree in `errors.py`; nothing is left in `out`.
    """
    device = resolve_device(config.device)
    require_free_output(out)
    positions = learned_positions(read_json_object(dense.directory / CONFIG_FILE))
    require_lengths(positions, config, evaluation)
    # Tasks that cannot be measured are rejected before the work, not after it.
    tasks = open_requested_tasks(evaluation) if evaluation is not None else None
    context = context_of(read_json_object(dense.directory / CONFIG_FILE))
    run.warnings.extend(beyond_context(context, config, evaluation))
    run.shares = shares_of(recover=config.recover is not None)
    with (
        repeatable_arithmetic(device),
        run.reporting(),
        run.counting_work(_work_key(dense, config, evaluation, run)),
        staging_directory(out) as staging,
    ):
        run.warnings.extend(staging.warnings)
        staged = staging.directory / "checkpoint"
        if not run.verify:
            run.warnings.append(UNVERIFIED)
        tournament = None
        if config.method == AUTO:
            config, tournament = choose_method(
                dense, config, evaluation, run, staging.directory, _compress_trial
            )
        report = _compress_checkpoint(dense, staged, config, run, evaluation)
        report = report.model_copy(update={"tournament": tournament})
        reported = len(run.warnings)
        if config.recover is not None:
            report = recover_staged(
                dense.directory, staged, report, run, dtype=config.dtype, device=config.device
            )
        write_gguf_files(staged, config, run)
        complete = complete_staged(dense, staged, config, run)
        if run.verify:
            verified = verify_staged(staged, config, run, complete)
            report = report.model_copy(update={"verified": verified})
        if evaluation is not None:
            pair = (dense.directory, staged)
            measured = evaluate_staged(pair, report, evaluation, tasks, run)
            report = report.with_evaluation(measured)
        later = {"warnings": (*report.warnings, *run.warnings[reported:])}
        report = report.model_copy(update=later | {"seconds": run.seconds})
        publish_staged(complete, out, report, run)
        run.record_speeds()
    return report


def _work_key(
    dense: OpenedModel,
    config: CompressionConfig,
    evaluation: EvaluationConfig | None,
    run: Run,
) -> str:
    """Return the key of the time worked on a run; empty if nothing is resumed."""
    if run.resume_state is None:
        return ""
    measured = None if evaluation is None else evaluation.model_dump(mode="json")
    return content_key(
        model=dense.fingerprint,
        config=config.model_dump(mode="json", exclude={"devices"}),
        evaluation=measured,
    )


def _compress_trial(
    dense: OpenedModel, staged: Path, config: CompressionConfig, run: Run, tokens: Tensor
) -> CompressionReport:
    """Write the checkpoint of a trial, calibrated on (samples, sequence_length) tokens."""
    return _compress_checkpoint(dense, staged, config, run, tokens=tokens)


def _compress_checkpoint(
    dense: OpenedModel,
    staged: Path,
    config: CompressionConfig,
    run: Run,
    evaluation: EvaluationConfig | None = None,
    tokens: Tensor | None = None,
) -> CompressionReport:
    """Write the checkpoint of a compression whose method is named.

    Args:
        dense: the dense model.
        staged: directory of the checkpoint.
        config: settings of the compression.
        run: state of the run.
        evaluation: measurements that follow; None without any.
        tokens: calibration sequences, (samples, sequence_length); None reads them.
    """
    run.ranks.computed(MAIN, lambda: (dense, config))  # the others begin here
    with CheckpointReader(dense.directory) as reader, torch.inference_mode():
        run.warnings.extend(reader.warnings)
        if dense.wrapper_table is not None:
            run.warnings.append(describe_result(dense.wrapper_table, config.target))
        work = plan_work(reader, dense, config, run)
        room = reader.bytes_total * (1 + len(config.gguf_formats)) + bytes_of_wrapper(dense, config)
        if evaluation is not None:
            room += dense_output_bytes(work.geometry, evaluation, work.dtype.itemsize)
        ensure_disk_space(staged, room)
        devices = "" if run.ranks.is_alone else f"{run.ranks.count} x "
        machine = f"{devices}{device_class(work.device)} {work.dtype} {config.method}"
        rates = machine_rates(gpu_class_of(work.device), work.dtype.itemsize)
        divided = config.model_copy(update={"devices": run.ranks.count})
        run.expect(work.geometry, divided, evaluation, work.stored_dtype.itemsize, machine, rates)
        if evaluation is not None:
            tokenizer = load_tokenizer(dense.directory)
            run.warnings += check_texts(evaluation, tokenizer, work.canonical["vocab_size"])
        # Text that the model writes may overflow, too.
        precision = advising_bfloat16(work.dtype, work.device)
        with precision, factorising_in_place(active=work.in_place):
            if tokens is None:
                work, tokens = shared_calibration_text(work, dense.directory, run)
            run.calibration = tokens
            work, run.training_text = read_training_text(work, dense.directory, staged.parent, run)
            shapes = choose_shapes(allocation_context(work, run), tokens)
            run.warnings += shortcut_warnings(work.geometry, shapes.plan)
            return_free_memory()
            layers = _write_compressed(work, dense.directory, staged, tokens, shapes, run)
        return _report(dense.reference, work, tokens, shapes, layers, staged, run)


def _write_compressed(
    work: CompressionWork, dense: Path, staged: Path, tokens: Tensor, shapes: Shapes, run: Run
) -> list[FinishedLayer]:
    """Compress layer by layer and write each before the next is compressed."""
    family, reader = work.reader.family, work.reader
    layers: list[FinishedLayer] = []
    numbers = {layer: number for number, layer in enumerate(shapes.plan.remaining)}
    with CheckpointWriter(staged, dtype=work.stored_dtype) as writer:
        loop = _loop(work, tokens, shapes, run)
        for name, own_name in family.outer_names(reader.config).items():
            tensor = check_finite(own_name, reader.tensor(own_name))
            stored_name = own_name if work.config.target == "stock" else name
            writer.add(loop.outer_tensors(stored_name, tensor))
        for layer in range(work.geometry.num_hidden_layers):
            finished = loop.finish(layer)
            if finished.tensors:
                form = result_form(work, shapes.plan, finished.kept_pairs)
                tensors = renumbered(finished.tensors, layer, numbers[layer])
                writer.add(tensors if form is None else form.tensors(tensors))
            layers.append(replace(finished, tensors={}, basis=None))
            return_free_memory()
        form = result_form(work, shapes.plan, layers[shapes.plan.remaining[0]].kept_pairs)
        sliced = sliced_config(work, shapes.plan, layers)
        writer.finish(sliced if form is None else form.configuration(), dense)
        run.written = writer.record
        run.reference = None if form is None else WrittenReference(form=form, config=sliced)
    return layers


def _loop(work: CompressionWork, tokens: Tensor, shapes: Shapes, run: Run) -> LayerLoop:
    """Return the loop over the layers, before the first one."""
    loop_type = ResidualLoop if shapes.plan.slices_residual else LayerLoop
    return loop_type(work, tokens, shapes, run)


def _report(
    model: str,
    work: CompressionWork,
    tokens: Tensor,
    shapes: Shapes,
    layers: list[FinishedLayer],
    staged: Path,
    run: Run,
) -> CompressionReport:
    geometry, plan = work.geometry, shapes.plan
    return CompressionReport(
        engine_version=intraslice_core.__version__,
        model=recorded_reference(model),
        method=fixed_method(work.config),
        config=work.config,
        geometry=geometry,
        plan=plan,
        runtimes=runtimes(work.config, work.result_settings),
        params_before=dense_parameters(geometry),
        params_after=total_parameters(work.result_geometry, plan),
        compressible_before=geometry.dense_plan().parameters(geometry),
        compressible_after=plan.parameters(geometry),
        bytes_before=weight_bytes(work.reader.directory),
        bytes_after=weight_bytes(staged),
        layers=tuple(layer.report for layer in layers),
        resumed_layers=run.resumed_layers,
        warnings=tuple(run.warnings),
        base_licence=base_licence(work.reader.directory),
        base_fingerprint=model_fingerprint(work.reader.directory),
        calibration_hash=calibration_hash(tokens),
        calibration_tokens=tokens.numel(),
        begins_with_bos=bool(work.prefix),
        seconds=run.seconds,
        peak_memory_bytes=peak_memory(work.device),
        device=device_class(work.device),
        allocation=shapes.report,
    )
