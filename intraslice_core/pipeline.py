"""The loop over layers: from a model's name to a smaller checkpoint that loads.

Weights are read one layer at a time, compressed, and written before the next is read; the hidden
states of the calibration sequences stay in host memory. Nothing is visible under the output's
name before everything about it is known to be good.
"""

from __future__ import annotations

import functools
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import intraslice_core
from intraslice_core.allocation.budget import Budget, compression_budget
from intraslice_core.allocation.shapes import KeptKnowledge, Shapes, ShapeWork, choose_shapes
from intraslice_core.cache import (
    DenseStates,
    FinishedLayer,
    LayerCheckpoints,
    SharedFiles,
    SharedStatistics,
    calibration_facts,
    content_key,
    fingerprint,
    tell_nobody,
)
from intraslice_core.calibration import calibration_hash, calibration_tokens
from intraslice_core.checkpoints.dense_model import ReaderLayers
from intraslice_core.checkpoints.manifest import model_fingerprint, write_manifest
from intraslice_core.checkpoints.model_card import base_licence, write_model_card
from intraslice_core.checkpoints.reader import CheckpointReader, check_finite
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.checkpoints.writer import (
    CheckpointWriter,
    WrittenRecord,
    ensure_disk_space,
    require_as_written,
    require_free_output,
)
from intraslice_core.config import (
    UNLIMITED,
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
    ExportFormat,
    GgufFormat,
    ModelLimits,
)
from intraslice_core.device import (
    HostMemory,
    bound_allocator,
    device_class,
    resolve_device,
    resolve_dtype,
    return_free_memory,
    rounding_class,
)
from intraslice_core.errors import NumericalError
from intraslice_core.evaluation.comparison import (
    DenseScores,
    Materials,
    evaluate_pair,
    open_asked_for,
)
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.verification import (
    VerificationResult,
    has_llama_cpp,
    verify_checkpoint,
    verify_gguf,
    write_reference,
)
from intraslice_core.export.adaptive import AdaptiveForm
from intraslice_core.export.form import CheckpointForm, WrittenReference, require_plain_attention
from intraslice_core.export.gguf import write_gguf
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.export.stock import StockForm
from intraslice_core.export.targets import require_target
from intraslice_core.families.canonical import (
    CanonicalSettings,
    block_weights,
    embedded,
    layer_prefix,
    named_tensors,
)
from intraslice_core.finetuning.procedure import RecoveryWork, blaming_recover, recover_checkpoint
from intraslice_core.finetuning.training import Moment
from intraslice_core.layer_compressor import LayerCompressor, LayerContext, LayerOutcome, Streams
from intraslice_core.methods import PRESETS
from intraslice_core.modeling import IntraSliceConfig, IntraSliceForCausalLM, intraslice_config
from intraslice_core.plan import (
    LayerPlan,
    ModelGeometry,
    ModelPlan,
    dense_parameters,
    total_parameters,
)
from intraslice_core.progress import (
    CancellationCheck,
    LayerDone,
    ProgressEvent,
    ProgressListener,
    Shares,
    Stage,
    ignore_progress,
    never_cancelled,
    raise_if_cancelled,
    shares_of,
)
from intraslice_core.reports.schema import (
    REPORT_FILE,
    CompressionReport,
    EvaluationReport,
    LayerReport,
    ModuleReport,
    SpectrumReport,
    VerifiedReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from intraslice_core.decoder_layer import BlockWeights
    from intraslice_core.evaluation.tasks import OpenedTasks
    from intraslice_core.layer_compressor import ModuleOutcome

GGUF_FILES: Mapping[GgufFormat, str] = MappingProxyType(
    {"gguf-f16": "model-f16.gguf", "gguf-q8_0": "model-q8_0.gguf"}
)
NO_LLAMA_CPP = (
    "{file} was not loaded by llama.cpp, which is not installed here: "
    'pip install "intraslice[llama-cpp]"'
)
UNVERIFIED = "the result was not loaded and compared with what was written"


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A dense model as a directory of safetensors, under the name it was asked for by."""

    reference: str
    directory: Path

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of everything that decides what it computes; reads all of its files, once."""
        return fingerprint(self.directory)


@dataclass(kw_only=True)
class Run:
    """What one run talks to: who listens, who may stop it, what the clock says."""

    on_progress: ProgressListener
    should_cancel: CancellationCheck
    started: float = field(default_factory=time.perf_counter)
    warnings: list[str] = field(default_factory=list)
    shared: SharedFiles | None = None
    checkpoints: LayerCheckpoints | None = None
    dense_scores: DenseScores | None = None
    offload_dir: Path | None = None
    """Where hidden states lie instead of in memory."""
    verify: bool = True
    resumed_layers: int = 0
    written: WrittenRecord | None = None
    """What the checkpoint's files must hold."""
    reference: WrittenReference | None = None
    """What the written files must compute, where they are not of our class."""
    training_text: Tensor | None = None
    """(n, sequence_length), where the result is to be trained."""
    shares: Shares = field(default_factory=lambda: shares_of(recover=False))
    calibration: Tensor | None = None
    """The sequences, (samples, sequence_length): an evaluation asks whether it shares text."""

    def report(
        self,
        stage: Stage,
        message: str,
        done: float = 0.0,
        layer: int | None = None,
        layers: int | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Stop if asked to; otherwise tell how far the run is.

        `done` and `seconds_left`, where a stage knows how long it will take, are of the stage.
        """
        raise_if_cancelled(self.should_cancel)
        begin, end = self.shares[stage]
        fraction = begin + (end - begin) * min(max(done, 0.0), 1.0)
        elapsed = time.perf_counter() - self.started
        eta = elapsed * (1.0 - fraction) / fraction if fraction > 0.02 else None
        if seconds_left is not None:
            eta = seconds_left + (elapsed + seconds_left) * (1.0 - end) / end
        self.on_progress(
            ProgressEvent(
                stage=stage,
                message=message,
                fraction=fraction,
                layer=layer,
                layers=layers,
                eta_seconds=eta,
            )
        )

    def layer_done(self, report: LayerReport, geometry: ModelGeometry) -> None:
        """Tell what a layer has become."""
        layers = geometry.num_hidden_layers
        begin, end = self.shares[Stage.COMPRESS]
        self.on_progress(
            ProgressEvent(
                stage=Stage.COMPRESS,
                message=f"layer {report.layer + 1}/{layers} is done",
                fraction=begin + (end - begin) * (report.layer + 1) / layers,
                layer=report.layer,
                layers=layers,
                finished=_layer_done(report, geometry.dense_layer()),
            )
        )


def _layer_done(report: LayerReport, dense: LayerPlan) -> LayerDone:
    plan = report.plan
    return LayerDone(
        layer=report.layer,
        num_attention_heads=plan.num_attention_heads,
        num_key_value_heads=plan.num_key_value_heads,
        qk_head_dim=plan.qk_head_dim,
        v_head_dim=plan.v_head_dim,
        intermediate_size=plan.intermediate_size,
        attention_part=_head_widths(plan) / _head_widths(dense),
        mlp_part=plan.intermediate_size / dense.intermediate_size,
        attention_error=report.attention.relative_error,
        mlp_error=report.mlp.relative_error,
        explained_energy=report.attention.explained_energy,
    )


def _head_widths(plan: LayerPlan) -> int:
    return plan.num_attention_heads * (plan.qk_head_dim + plan.v_head_dim)


def compress_model(  # noqa: PLR0913  # one call is the whole engine
    model: str,
    out: Path,
    config: CompressionConfig,
    *,
    evaluation: EvaluationConfig | None = None,
    limits: ModelLimits = UNLIMITED,
    work_dir: Path | None = None,
    shared: SharedFiles | None = None,
    checkpoints: LayerCheckpoints | None = None,
    offload_dir: Path | None = None,
    verify: bool = True,
    on_progress: ProgressListener = ignore_progress,
    should_cancel: CancellationCheck = never_cancelled,
) -> CompressionReport:
    """Compress a model into a directory that transformers loads.

    Args:
        model: a directory of safetensors, a `.gguf` file, `hub:org/name[@revision]` or
            `package:NAME`.
        out: the directory to make; absent or empty.
        config: what to do.
        evaluation: what to measure afterwards, or None to measure nothing.
        limits: how large the model may be.
        work_dir: where converted models go; a temporary directory by default.
        shared: what runs at other ratios have left, and where this one leaves the same.
        checkpoints: what an interrupted run has finished, and where this one keeps the same;
            whoever gave it removes it.
        offload_dir: where hidden states are kept instead of in memory, in files without a name.
        verify: load the result in a clean process, which takes memory for all of it in float32.
        on_progress: hears every step.
        should_cancel: asked between batches.

    Returns:
        What was done and what it cost; also stored in the checkpoint.

    Raises:
        IntraSliceError: one of the tree in `errors.py`; nothing is left behind then.
    """
    run = Run(
        on_progress=on_progress,
        should_cancel=should_cancel,
        shared=shared,
        checkpoints=checkpoints,
        offload_dir=offload_dir,
        verify=verify,
    )
    require_free_output(out)
    bound_allocator()
    with tempfile.TemporaryDirectory(prefix="intraslice-", dir=work_dir) as scratch:
        run.report(Stage.LOAD, f"opening {model}")
        directory = open_model(model, Path(scratch), limits)
        opened = OpenedModel(reference=model, directory=directory)
        return compress_opened(opened, out, config, evaluation, run)


def compress_opened(
    dense: OpenedModel,
    out: Path,
    config: CompressionConfig,
    evaluation: EvaluationConfig | None,
    run: Run,
) -> CompressionReport:
    """`compress_model` of what is open already, for those who open once and compress often.

    Raises:
        IntraSliceError: one of the tree in `errors.py`; nothing is left behind then.
    """
    require_free_output(out)
    # A task that cannot be measured is refused before the work, not after it.
    tasks = open_asked_for(evaluation) if evaluation is not None else None
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    run.shares = shares_of(recover=config.recover is not None)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.staging-", dir=parent) as staging:
        staged = Path(staging) / "checkpoint"
        if not run.verify:
            run.warnings.append(UNVERIFIED)
        report = _compress_checkpoint(dense, staged, config, run)
        if config.recover is not None:
            report = recover_staged(
                dense.directory, staged, report, run, dtype=config.dtype, device=config.device
            )
        _write_gguf_files(staged, config, run)
        if run.verify:
            report = report.model_copy(update={"verified": _verify(staged, config, run)})
        if evaluation is not None:
            measured = _evaluate((dense.directory, staged), config, evaluation, tasks, run)
            report = report.with_evaluation(measured)
        report = report.model_copy(update={"seconds": time.perf_counter() - run.started})
        publish_staged(staged, out, report, run)
    return report


# -- compression -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Work:
    """An opened model and everything that was decided about its compression."""

    reader: CheckpointReader
    config: CompressionConfig
    canonical: CanonicalSettings
    """The dense model as an instance of the one architecture."""
    geometry: ModelGeometry
    budget: Budget
    device: torch.device
    dtype: torch.dtype
    stored_dtype: torch.dtype
    """Of the dense checkpoint, and so of the compressed one."""
    fingerprint: str
    """Of the dense model; empty where nobody asks for it."""
    shared: SharedStatistics | None
    checkpoints: LayerCheckpoints | None
    memory: HostMemory
    """Of both streams, and of what the estimator keeps."""

    @property
    def layers(self) -> ReaderLayers:
        """The dense model's."""
        return ReaderLayers(self.reader, self.device, self.dtype, self.memory)

    def key(self, **facts: object) -> str:
        """Names what depends on this work and on `facts`."""
        return content_key(
            model=self.fingerprint,
            place=rounding_class(self.device),
            dtype=str(self.dtype),
            **facts,
        )


def _compress_checkpoint(
    dense: OpenedModel, staged: Path, config: CompressionConfig, run: Run
) -> CompressionReport:
    with CheckpointReader(dense.directory) as reader, torch.inference_mode():
        work = _plan_work(reader, dense, config, run)
        ensure_disk_space(staged, reader.bytes_total * (1 + len(config.gguf_formats)))
        tokens = run.calibration = _calibrate(work, dense.directory, run)
        run.training_text = _training_text(work, dense.directory, run)
        shapes = choose_shapes(_shape_work(work, run), tokens)
        return_free_memory()
        layers = _write_compressed(work, dense.directory, staged, tokens, shapes, run)
        return _report(dense.reference, work, tokens, shapes, layers, staged, run)


def _plan_work(
    reader: CheckpointReader, dense: OpenedModel, config: CompressionConfig, run: Run
) -> _Work:
    geometry = reader.family.geometry(reader.config)
    canonical = reader.family.canonical_settings(reader.config)
    require_target(config, reader.family.model_type)
    if config.target != "research":
        require_plain_attention(canonical, config)
    if config.gguf_formats:
        read_vocabulary(dense.directory, canonical["vocab_size"], adds_bos=False)
    device = resolve_device(config.device)
    embedding = reader.tensor(reader.family.embedding)
    budget = compression_budget(config, geometry, embedding.dtype.itemsize)
    dtype = resolve_dtype(config.dtype, device, embedding.dtype)
    digest = dense.fingerprint if run.shared or run.checkpoints else ""
    shared = None
    if run.shared is not None:
        place = rounding_class(device)
        shared = SharedStatistics(
            files=run.shared, facts={"model": digest, "place": place, "dtype": str(dtype)}
        )
    return _Work(
        reader=reader,
        config=config,
        canonical=canonical,
        geometry=geometry,
        budget=budget,
        device=device,
        dtype=dtype,
        stored_dtype=embedding.dtype,
        fingerprint=digest,
        shared=shared,
        checkpoints=run.checkpoints,
        memory=HostMemory(run.offload_dir),
    )


def _calibrate(work: _Work, dense: Path, run: Run) -> Tensor:
    """Calibration sequences, (samples, sequence_length)."""
    settings = work.config.calibration
    sources = ", ".join(one.source for one in settings.mixture)
    run.report(Stage.CALIBRATE, f"reading calibration text: {sources}")
    make = _reader(work, settings, dense, run)
    if work.checkpoints is None:
        return make()
    return work.checkpoints.tokens(work.key(**calibration_facts(settings)), make)


def _training_text(work: _Work, dense: Path, run: Run) -> Tensor | None:
    """What is trained on after the compression, read before it: it may be too short."""
    if work.config.recover is None:
        return None
    run.report(Stage.CALIBRATE, "reading the text to train on", 0.5)
    settings = work.config.recover.text(work.config.calibration)
    make = _reader(work, settings, dense, run)
    with blaming_recover():
        if work.checkpoints is None:
            return make()
        return work.checkpoints.recovery_tokens(work.key(**calibration_facts(settings)), make)


def _reader(
    work: _Work, settings: CalibrationConfig, dense: Path, run: Run
) -> Callable[[], Tensor]:
    """Reads, or lets the dense model write, sequences that no run beside this one has kept."""
    tokenizer = _tokenizer(dense)

    def load_dense() -> PreTrainedModel:
        return load_model(dense, dtype=work.config.dtype, device=work.config.device)

    def read() -> Tensor:
        return calibration_tokens(
            settings, tokenizer, model=load_dense, should_cancel=run.should_cancel
        )

    def make() -> Tensor:
        return read() if work.shared is None else work.shared.tokens(settings, read)

    return make


def _shape_work(work: _Work, run: Run) -> ShapeWork:
    def before_batch(done: float, message: str) -> None:
        run.report(Stage.ALLOCATE, message, done)

    return ShapeWork(
        layers=work.layers,
        config=work.config,
        geometry=work.geometry,
        budget=work.budget,
        device=work.device,
        stored_dtype=work.stored_dtype,
        kept=_kept_knowledge(run),
        key=work.key,
        before_batch=before_batch,
    )


def _kept_knowledge(run: Run) -> KeptKnowledge | None:
    """With the other shared files, or among the checkpoints of this job alone."""
    if run.shared is not None:
        shared = run.shared
        return KeptKnowledge(
            directory=shared.directory, has_room=shared.has_room, on_saved=tell_nobody
        )
    if run.checkpoints is None:
        return None
    kept = run.checkpoints
    return KeptKnowledge(directory=kept.directory, has_room=lambda _: True, on_saved=kept.on_saved)


def _write_compressed(
    work: _Work, dense: Path, staged: Path, tokens: Tensor, shapes: Shapes, run: Run
) -> list[FinishedLayer]:
    """Compress layer by layer, writing each before the next is read."""
    family, reader = work.reader.family, work.reader
    layers: list[FinishedLayer] = []
    with CheckpointWriter(staged, dtype=work.stored_dtype) as writer:
        for name, own_name in family.outer_names(reader.config).items():
            writer.add({name: check_finite(own_name, reader.tensor(own_name))})
        walk = _Walk(work, tokens, shapes, run)
        for layer in range(work.geometry.num_hidden_layers):
            finished = walk.finish(layer)
            form = _form(work, shapes.plan, finished.kept_pairs)
            writer.add(finished.tensors if form is None else form.tensors(finished.tensors))
            layers.append(replace(finished, tensors={}))
            return_free_memory()
        form = _form(work, shapes.plan, layers[0].kept_pairs)
        sliced = _sliced_config(work, shapes.plan, layers)
        writer.finish(sliced if form is None else form.configuration(), dense)
        run.written = writer.record
        run.reference = None if form is None else WrittenReference(form=form, config=sliced)
    return layers


def _sliced_config(
    work: _Work, plan: ModelPlan, layers: Sequence[FinishedLayer]
) -> IntraSliceConfig:
    """The compressed model as one of our class."""
    return intraslice_config(
        work.canonical, plan.layers, [layer.kept_pairs.tolist() for layer in layers]
    )


def _form(work: _Work, plan: ModelPlan, kept_pairs: Tensor) -> CheckpointForm | None:
    """How the model is written, where it is not of our class.

    Args:
        work: the compression.
        plan: of all layers.
        kept_pairs: of a layer's heads, (num_key_value_heads, qk_pairs).
    """
    if work.config.target == "adaptive":
        return AdaptiveForm(canonical=work.canonical, plan=plan)
    if work.config.target == "stock":
        return StockForm(
            family=work.reader.family,
            config=work.reader.config,
            canonical=work.canonical,
            shape=plan.layers[0],
            pairs=kept_pairs[0],
        )
    return None


class _Walk:
    """Both streams on their way through the layers, each of which is compressed or was before."""

    def __init__(self, work: _Work, tokens: Tensor, shapes: Shapes, run: Run) -> None:
        self._work = work
        self._shapes = shapes
        self._run = run
        self._streams = _embed(work, tokens)
        self._states = _dense_states(work, tokens)
        self._checkpoints = work.checkpoints
        self._key = work.key(
            config=work.config.model_dump(mode="json", exclude={"recover"}),
            tokens=calibration_hash(tokens),
            plan=shapes.plan.model_dump(mode="json"),
        )
        self._past = self._restore()

    def finish(self, layer: int) -> FinishedLayer:
        """The layer as it will be saved; both streams are past it afterwards."""
        kept = self._checkpoints and self._checkpoints.layer(self._key, layer)
        if kept:
            if layer >= self._past:
                self._replay(layer, kept)
            self._run.resumed_layers += 1
            self._run.layer_done(kept.report, self._work.geometry)
            return kept
        if layer < self._past:
            raise RuntimeError(f"layer {layer} is no longer where it was a moment ago")
        finished = self._compress(layer)
        if self._checkpoints is not None:
            self._checkpoints.save_layer(self._key, finished)
            self._save_streams(self._checkpoints, layer + 1)
        self._run.layer_done(finished.report, self._work.geometry)
        return finished

    def _restore(self) -> int:
        """Past how many layers the streams are already."""
        kept = self._checkpoints
        if kept is None:
            return 0
        finished = 0
        while kept.has_layer(self._key, finished):
            finished += 1
        return kept.restore_streams(self._key, self._streams.tensors(), finished)

    def _save_streams(self, checkpoints: LayerCheckpoints, layers: int) -> None:
        trouble = checkpoints.save_streams_now_and_then(self._key, self._streams.tensors(), layers)
        if trouble is not None and trouble not in self._run.warnings:
            self._run.warnings.append(trouble)

    def _compress(self, layer: int) -> FinishedLayer:
        plan, geometry = self._shapes.plan.layers[layer], self._work.geometry
        compressor = self._compressor(
            layer,
            f"MLP {geometry.intermediate_size}→{plan.intermediate_size}, "
            f"q/k {geometry.head_dim}→{plan.qk_head_dim}, v {geometry.head_dim}→{plan.v_head_dim}",
        )
        outcome = compressor.run()
        self._require_finite(layer)
        tensors = named_tensors(layer, outcome.weights)
        return FinishedLayer(
            tensors={name: one.to("cpu", self._work.stored_dtype) for name, one in tensors.items()},
            kept_pairs=outcome.kept_pairs,
            report=_layer_report(layer, plan, outcome),
        )

    def _replay(self, layer: int, kept: FinishedLayer) -> None:
        self._compressor(layer, "finished before").replay(self._weights(layer, kept))
        self._require_finite(layer)

    def _weights(self, layer: int, kept: FinishedLayer) -> BlockWeights:
        work = self._work
        prefix, plan = layer_prefix(layer), self._shapes.plan.layers[layer]
        tensors = {name.removeprefix(prefix): tensor for name, tensor in kept.tensors.items()}
        weights = block_weights(tensors, plan.num_key_value_heads, work.device, work.dtype)
        if plan.qk_head_dim == work.geometry.head_dim:
            return weights
        return replace(weights, rotary_pairs=kept.kept_pairs.to(work.device))

    def _compressor(self, layer: int, message: str) -> LayerCompressor:
        work, run, streams = self._work, self._run, self._streams
        layers = work.geometry.num_hidden_layers
        dense = work.layers

        def before_batch(done: float) -> None:
            told = f"layer {layer + 1}/{layers}: {message}"
            run.report(Stage.COMPRESS, told, (layer + done) / layers, layer, layers)

        known = self._shapes.knowledge
        context = LayerContext(
            layer=layer,
            settings=dense.settings(layer),
            rotary=dense.rotary(layer, streams.compressed.shape[1]),
            preset=PRESETS[work.config.method],
            batch_size=work.config.batch_size,
            device=work.device,
            stored_dtype=work.stored_dtype,
            before_batch=before_batch,
            knowledge=known[layer].to(work.device) if known else None,
            dense_states=self._states,
        )
        return LayerCompressor(
            dense.weights(layer), self._shapes.plan.layers[layer], streams, context
        )

    def _require_finite(self, layer: int) -> None:
        if not torch.isfinite(self._streams.compressed[-1]).all():
            raise NumericalError("the compressed stream holds NaN or infinity", layer=layer)


def _embed(work: _Work, tokens: Tensor) -> Streams:
    """Both streams at the embedding, in host memory and compute dtype."""
    table = work.reader.tensor(work.reader.family.embedding)
    hidden = work.memory.empty((*tokens.shape, table.shape[1]), work.dtype)
    for row, sequence in enumerate(tokens):
        hidden[row] = embedded(work.canonical, table[sequence].to(work.dtype))
    dense_target = PRESETS[work.config.method].dense_target
    return Streams(compressed=hidden, dense=work.memory.copy(hidden) if dense_target else None)


def _dense_states(work: _Work, tokens: Tensor) -> DenseStates | None:
    """Where runs with the same tokens, walked over alike, share the dense stream."""
    if work.shared is None:
        return None
    return work.shared.dense_states(
        tokens=calibration_hash(tokens),
        batch_size=work.config.batch_size,
        method=work.config.method,
    )


# -- recovery ----------------------------------------------------------------------------------


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
            "bytes_after": _weight_bytes(staged),
            "peak_memory_bytes": _peak_memory(resolve_device(device)),
        }
    )


# -- verification, evaluation, publication ------------------------------------------------------


def _write_gguf_files(staged: Path, config: CompressionConfig, run: Run) -> None:
    """Beside the checkpoint, from its own files."""
    if not config.gguf_formats or run.reference is None:
        return
    layout = run.reference.form.gguf_layout()
    tokenizer = _tokenizer(staged)
    begins = list(tokenizer("a")["input_ids"][:1]) == [tokenizer.bos_token_id]
    vocabulary = read_vocabulary(staged, layout.vocab_size, adds_bos=begins)
    for wanted in config.gguf_formats:
        run.report(Stage.VERIFY, f"writing {GGUF_FILES[wanted]}")
        write_gguf(staged / GGUF_FILES[wanted], staged, layout, vocabulary, wanted)


def _verify(staged: Path, config: CompressionConfig, run: Run) -> tuple[VerifiedReport, ...]:
    """Prove that the written files load in clean processes and act like the model here."""
    run.report(Stage.VERIFY, "loading the result in a clean process")
    if run.written is not None:
        require_as_written(staged, run.written)
    model = (
        IntraSliceForCausalLM.from_pretrained(staged, local_files_only=True, dtype=torch.float32)
        if run.reference is None
        else run.reference.model(staged)
    )
    write_reference(staged, model, _tokenizer(staged))
    del model
    found: list[tuple[ExportFormat, VerificationResult]]
    found = [("safetensors", verify_checkpoint(staged, should_cancel=run.should_cancel))]
    for wanted in config.gguf_formats:
        file = GGUF_FILES[wanted]
        if not has_llama_cpp():
            run.warnings.append(NO_LLAMA_CPP.format(file=file))
            continue
        run.report(Stage.VERIFY, f"loading {file} in llama.cpp", 0.5)
        found.append((wanted, verify_gguf(staged, file, wanted, should_cancel=run.should_cancel)))
    return tuple(verified_report(name, one) for name, one in found)


def verified_report(files: ExportFormat, result: VerificationResult) -> VerifiedReport:
    """What a report keeps of a verification."""
    return VerifiedReport(
        files=files,
        loaded_by=result.loaded_by,
        max_abs_difference=result.max_abs_difference,
        tolerance=result.tolerance,
    )


def _evaluate(
    pair: tuple[Path, Path],
    config: CompressionConfig,
    evaluation: EvaluationConfig,
    tasks: OpenedTasks | None,
    run: Run,
) -> EvaluationReport:
    run.report(Stage.EVALUATE, "dense against compressed")

    def relay(event: ProgressEvent) -> None:
        run.report(Stage.EVALUATE, event.message, event.fraction)

    return evaluate_pair(
        *pair,
        evaluation,
        dtype=config.dtype,
        device=config.device,
        materials=Materials(tasks=tasks, calibration=run.calibration, known=run.dense_scores),
        on_progress=relay,
        should_cancel=run.should_cancel,
    )


def publish_staged(staged: Path, out: Path, report: CompressionReport, run: Run) -> None:
    """Add report and model card, then give the checkpoint its name.

    Raises:
        OutputExistsError: if `out` appeared meanwhile.
    """
    run.report(Stage.EXPORT, f"writing {out}")
    (staged / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_model_card(staged, report.model_dump(mode="json"))
    write_manifest(
        staged,
        {
            "model": report.model,
            "base_fingerprint": report.base_fingerprint,
            "licence": report.base_licence,
            "compression": report.config.model_dump(mode="json"),
            "calibration_hash": report.calibration_hash,
            "evaluation": [] if report.evaluation is None else report.evaluation.texts,
        },
    )
    require_free_output(out)
    staged.replace(out)
    run.on_progress(ProgressEvent(stage=Stage.EXPORT, message=f"wrote {out}", fraction=1.0))


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


# -- report ------------------------------------------------------------------------------------


def _module_report(outcome: ModuleOutcome) -> ModuleReport:
    return ModuleReport(
        module=outcome.module,
        relative_error=outcome.relative_error,
        explained_energy=outcome.explained_energy,
        damping=outcome.damping,
        spectra=tuple(SpectrumReport(**asdict(one)) for one in outcome.spectra),
    )


def _layer_report(layer: int, plan: LayerPlan, outcome: LayerOutcome) -> LayerReport:
    return LayerReport(
        layer=layer,
        plan=plan,
        attention=_module_report(outcome.attention),
        mlp=_module_report(outcome.mlp),
        seconds=outcome.seconds,
    )


def _report(
    model: str,
    work: _Work,
    tokens: Tensor,
    shapes: Shapes,
    layers: list[FinishedLayer],
    staged: Path,
    run: Run,
) -> CompressionReport:
    geometry, plan = work.geometry, shapes.plan
    return CompressionReport(
        engine_version=intraslice_core.__version__,
        model=model,
        method=work.config.method,
        config=work.config,
        geometry=geometry,
        plan=plan,
        params_before=dense_parameters(geometry),
        params_after=total_parameters(geometry, plan),
        compressible_before=geometry.dense_plan().parameters(geometry),
        compressible_after=plan.parameters(geometry),
        bytes_before=_weight_bytes(work.reader.directory),
        bytes_after=_weight_bytes(staged),
        layers=tuple(layer.report for layer in layers),
        resumed_layers=run.resumed_layers,
        warnings=tuple(run.warnings),
        base_licence=base_licence(work.reader.directory),
        base_fingerprint=model_fingerprint(work.reader.directory),
        calibration_hash=calibration_hash(tokens),
        calibration_tokens=tokens.numel(),
        seconds=time.perf_counter() - run.started,
        peak_memory_bytes=_peak_memory(work.device),
        device=device_class(work.device),
        allocation=shapes.report,
    )


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _peak_memory(device: torch.device) -> int:
    """Peak bytes of this process: on the GPU where it works there, else resident in the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
