"""The loop over layers: from a model's name to a smaller checkpoint that loads.

Weights are read one layer at a time, compressed, and written before the next is read; the hidden
states of the calibration sequences stay in host memory. Nothing is visible under the output's
name before everything about it is known to be good.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import intraslice_core
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.calibration import calibration_hash, calibration_tokens
from intraslice_core.checkpoints import (
    CheckpointReader,
    CheckpointWriter,
    check_finite,
    ensure_disk_space,
    open_model,
    require_free_output,
)
from intraslice_core.checkpoints.model_card import write_model_card
from intraslice_core.config import (
    UNLIMITED,
    CompressionConfig,
    EvaluationConfig,
    ModelLimits,
)
from intraslice_core.errors import NumericalError
from intraslice_core.evaluation.comparison import evaluate_pair, load_model
from intraslice_core.evaluation.verification import verify_checkpoint, write_reference
from intraslice_core.families.blocks import (
    block_settings,
    block_weights,
    named_tensors,
    rotary_tables,
)
from intraslice_core.hardware import device_class, resolve_device, resolve_dtype
from intraslice_core.layer import LayerCompressor, LayerContext, LayerOutcome, Streams
from intraslice_core.modeling import IntraSliceLlamaForCausalLM, intraslice_config
from intraslice_core.plan import ModelGeometry, ModelPlan, total_parameters
from intraslice_core.presets import PRESETS
from intraslice_core.progress import (
    CancellationCheck,
    ProgressEvent,
    ProgressListener,
    Stage,
    ignore_progress,
    never_cancelled,
    raise_if_cancelled,
)
from intraslice_core.reports.schema import (
    CompressionReport,
    EvaluationReport,
    LayerReport,
    ModuleReport,
)
from intraslice_core.sharing import DenseStates, SharedFiles, SharedStatistics

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from intraslice_core.layer import ModuleOutcome

REPORT_FILE = "intraslice_report.json"

SHARES: dict[Stage, tuple[float, float]] = {
    Stage.LOAD: (0.0, 0.02),
    Stage.CALIBRATE: (0.02, 0.06),
    Stage.ALLOCATE: (0.06, 0.06),
    Stage.COMPRESS: (0.06, 0.75),
    Stage.VERIFY: (0.75, 0.80),
    Stage.EVALUATE: (0.80, 0.99),
    Stage.EXPORT: (0.99, 1.0),
}
"""Where each stage begins and ends as a fraction of a run; measured on SmolLM2-135M."""


@dataclass(kw_only=True)
class Run:
    """What one run talks to: who listens, who may stop it, what the clock says."""

    on_progress: ProgressListener
    should_cancel: CancellationCheck
    started: float = field(default_factory=time.perf_counter)
    warnings: list[str] = field(default_factory=list)
    shared: SharedFiles | None = None

    def report(
        self,
        stage: Stage,
        message: str,
        done: float = 0.0,
        layer: int | None = None,
        layers: int | None = None,
    ) -> None:
        """Stop if asked to; otherwise tell how far the run is. `done` is of the stage."""
        raise_if_cancelled(self.should_cancel)
        begin, end = SHARES[stage]
        fraction = begin + (end - begin) * min(max(done, 0.0), 1.0)
        elapsed = time.perf_counter() - self.started
        eta = elapsed * (1.0 - fraction) / fraction if fraction > 0.02 else None
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


def compress_model(  # noqa: PLR0913  # one call is the whole engine
    model: str,
    out: Path,
    config: CompressionConfig,
    *,
    evaluation: EvaluationConfig | None = None,
    limits: ModelLimits = UNLIMITED,
    work_dir: Path | None = None,
    shared: SharedFiles | None = None,
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
        on_progress: hears every step.
        should_cancel: asked between batches.

    Returns:
        What was done and what it cost; also stored in the checkpoint.

    Raises:
        IntraSliceError: one of the tree in `errors.py`; nothing is left behind then.
    """
    run = Run(on_progress=on_progress, should_cancel=should_cancel, shared=shared)
    require_free_output(out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="intraslice-", dir=work_dir) as scratch,
        tempfile.TemporaryDirectory(
            prefix=f".{out.name}.staging-", dir=out.absolute().parent
        ) as staging,
    ):
        run.report(Stage.LOAD, f"opening {model}")
        dense = open_model(model, Path(scratch), limits)
        staged = Path(staging) / "checkpoint"
        report = _compress_checkpoint(model, dense, staged, config, run)
        _verify(staged, run)
        if evaluation is not None:
            report = report.model_copy(
                update={"evaluation": _evaluate(dense, staged, config, evaluation, run)}
            )
        report = report.model_copy(update={"seconds": time.perf_counter() - run.started})
        _publish(staged, out, report, run)
    return report


# -- compression -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Work:
    """An opened model and everything that was decided about its compression."""

    reader: CheckpointReader
    config: CompressionConfig
    geometry: ModelGeometry
    plan: ModelPlan
    device: torch.device
    dtype: torch.dtype
    stored_dtype: torch.dtype
    """Of the dense checkpoint, and so of the compressed one."""
    shared: SharedStatistics | None


def _compress_checkpoint(
    model: str, dense: Path, staged: Path, config: CompressionConfig, run: Run
) -> CompressionReport:
    with CheckpointReader(dense) as reader, torch.inference_mode():
        work = _plan_work(reader, dense, config, run)
        ensure_disk_space(staged, reader.bytes_total)
        tokens = _calibrate(work, dense, run)
        outcomes = _write_compressed(work, dense, staged, tokens, run)
        return _report(model, work, tokens, outcomes, staged, run)


def _plan_work(reader: CheckpointReader, dense: Path, config: CompressionConfig, run: Run) -> _Work:
    run.report(Stage.ALLOCATE, f"planning {config.ratio:.0%} off")
    geometry = reader.family.geometry(reader.config)
    device = resolve_device(config.device)
    embedding = reader.tensor(reader.family.embedding)
    dtype = resolve_dtype(config.dtype, device, embedding.dtype)
    shared = None
    if run.shared is not None:
        place = device_class(device)
        shared = SharedStatistics.of(run.shared, dense, device=place, dtype=str(dtype))
    return _Work(
        reader=reader,
        config=config,
        geometry=geometry,
        plan=uniform_plan(geometry, config.ratio, config.round_to),
        device=device,
        dtype=dtype,
        stored_dtype=embedding.dtype,
        shared=shared,
    )


def _calibrate(work: _Work, dense: Path, run: Run) -> Tensor:
    """Calibration sequences, (samples, sequence_length)."""
    settings = work.config.calibration
    run.report(Stage.CALIBRATE, f"reading calibration text: {settings.source}")
    tokenizer = _tokenizer(dense)

    def load_dense() -> PreTrainedModel:
        return load_model(dense, dtype=work.config.dtype, device=work.config.device)

    def make() -> Tensor:
        return calibration_tokens(
            settings, tokenizer, model=load_dense, should_cancel=run.should_cancel
        )

    return make() if work.shared is None else work.shared.tokens(settings, make)


def _write_compressed(
    work: _Work, dense: Path, staged: Path, tokens: Tensor, run: Run
) -> list[LayerOutcome]:
    """Compress layer by layer, writing each before the next is read."""
    family, reader = work.reader.family, work.reader
    outcomes: list[LayerOutcome] = []
    with CheckpointWriter(staged, dtype=work.stored_dtype) as writer:
        for name in family.outer_shapes(reader.config):
            writer.add({name: check_finite(name, reader.tensor(name))})
        streams, states = _embed(work, tokens), _dense_states(work, tokens)
        for layer in range(work.geometry.num_hidden_layers):
            outcome = _compress_layer(work, layer, streams, states, run)
            writer.add(named_tensors(family, layer, outcome.weights))
            outcomes.append(outcome)
        writer.finish(
            intraslice_config(
                cast("LlamaConfig", reader.config),
                work.plan.layers,
                [o.kept_pairs.tolist() for o in outcomes],
            ),
            dense,
        )
    return outcomes


def _embed(work: _Work, tokens: Tensor) -> Streams:
    """Both streams at the embedding, in host memory and compute dtype."""
    table = work.reader.tensor(work.reader.family.embedding)
    hidden = torch.empty(*tokens.shape, table.shape[1], dtype=work.dtype)
    for row, sequence in enumerate(tokens):
        hidden[row] = table[sequence].to(work.dtype)
    dense_target = PRESETS[work.config.method].dense_target
    return Streams(compressed=hidden, dense=hidden.clone() if dense_target else None)


def _dense_states(work: _Work, tokens: Tensor) -> DenseStates | None:
    """Where runs with the same tokens, walked over alike, share the dense stream."""
    if work.shared is None:
        return None
    return work.shared.dense_states(
        tokens=calibration_hash(tokens),
        batch_size=work.config.batch_size,
        method=work.config.method,
    )


def _compress_layer(
    work: _Work, layer: int, streams: Streams, states: DenseStates | None, run: Run
) -> LayerOutcome:
    layers, plan = work.geometry.num_hidden_layers, work.plan.layers[layer]
    family = work.reader.family
    prefix = family.layer_prefix(layer)
    tensors = work.reader.tensors(prefix)
    for name, tensor in tensors.items():
        check_finite(prefix + name, tensor)
    message = (
        f"layer {layer + 1}/{layers}: MLP {work.geometry.intermediate_size}→"
        f"{plan.intermediate_size}, q/k {work.geometry.head_dim}→{plan.qk_head_dim}, "
        f"v {work.geometry.head_dim}→{plan.v_head_dim}"
    )

    def before_batch(done: float) -> None:
        run.report(Stage.COMPRESS, message, (layer + done) / layers, layer, layers)

    context = LayerContext(
        layer=layer,
        settings=block_settings(work.reader.config),
        rotary=rotary_tables(work.reader.config, streams.compressed.shape[1], work.device),
        preset=PRESETS[work.config.method],
        batch_size=work.config.batch_size,
        device=work.device,
        stored_dtype=work.stored_dtype,
        before_batch=before_batch,
        dense_states=states,
    )
    weights = block_weights(family, tensors, work.device, work.dtype)
    outcome = LayerCompressor(weights, plan, streams, context).run()
    if not torch.isfinite(streams.compressed[-1]).all():
        raise NumericalError("the compressed stream holds NaN or infinity", layer=layer)
    return outcome


# -- verification, evaluation, publication ------------------------------------------------------


def _verify(staged: Path, run: Run) -> None:
    """Prove that the written files load in a clean process and act like the model here."""
    run.report(Stage.VERIFY, "loading the result in a clean process")
    model = IntraSliceLlamaForCausalLM.from_pretrained(
        staged, local_files_only=True, dtype=torch.float32
    )
    write_reference(staged, model, _tokenizer(staged))
    del model
    verify_checkpoint(staged, should_cancel=run.should_cancel)


def _evaluate(
    dense: Path, staged: Path, config: CompressionConfig, evaluation: EvaluationConfig, run: Run
) -> EvaluationReport:
    run.report(Stage.EVALUATE, "dense against compressed")

    def relay(event: ProgressEvent) -> None:
        run.report(Stage.EVALUATE, event.message, event.fraction)

    return evaluate_pair(
        dense,
        staged,
        evaluation,
        dtype=config.dtype,
        device=config.device,
        on_progress=relay,
        should_cancel=run.should_cancel,
    )


def _publish(staged: Path, out: Path, report: CompressionReport, run: Run) -> None:
    """Add report and model card, then give the checkpoint its name."""
    run.report(Stage.EXPORT, f"writing {out}")
    (staged / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_model_card(staged, report.model_dump(mode="json"))
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
    )


def _report(
    model: str, work: _Work, tokens: Tensor, outcomes: list[LayerOutcome], staged: Path, run: Run
) -> CompressionReport:
    geometry, plan = work.geometry, work.plan
    layers = tuple(
        LayerReport(
            layer=index,
            plan=plan.layers[index],
            attention=_module_report(outcome.attention),
            mlp=_module_report(outcome.mlp),
            seconds=outcome.seconds,
        )
        for index, outcome in enumerate(outcomes)
    )
    return CompressionReport(
        engine_version=intraslice_core.__version__,
        model=model,
        method=work.config.method,
        config=work.config,
        geometry=geometry,
        plan=plan,
        params_before=total_parameters(geometry, geometry.dense_plan()),
        params_after=total_parameters(geometry, plan),
        compressible_before=geometry.dense_plan().parameters(geometry),
        compressible_after=plan.parameters(geometry),
        bytes_before=_weight_bytes(work.reader.directory),
        bytes_after=_weight_bytes(staged),
        layers=layers,
        warnings=tuple(run.warnings),
        calibration_hash=calibration_hash(tokens),
        calibration_tokens=tokens.numel(),
        seconds=time.perf_counter() - run.started,
        peak_memory_bytes=_peak_memory(work.device),
        device=device_class(work.device),
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
