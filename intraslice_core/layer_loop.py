"""The loop over layers: each is compressed, or restored from the resume state.

The hidden states of the calibration sequences pass through the layers as they are compressed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from intraslice_core import slicing
from intraslice_core.allocation.budget import Budget
from intraslice_core.allocation.shapes import Shapes
from intraslice_core.calibration import calibration_hash, sequence_groups
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.content_key import content_key
from intraslice_core.decoder_layer import residual_parts, with_residual_parts
from intraslice_core.device import HostMemory, TensorMemory, machine_class
from intraslice_core.device_memory import (
    BatchSize,
    any_rank_lacks_room,
    out_of_memory_reported,
)
from intraslice_core.errors import CompressionCancelledError, NumericalError
from intraslice_core.families.canonical import (
    CanonicalSettings,
    layer_prefix,
    layer_weights,
    named_tensors,
)
from intraslice_core.hidden_states import HiddenStates, LayerContext, group_sources
from intraslice_core.layer_compressor import LayerCompressor, LayerOutcome
from intraslice_core.methods import CompressionMethod, adds_output_biases, method_for
from intraslice_core.plan import LayerPlan, ModelGeometry
from intraslice_core.progress import Stage
from intraslice_core.ranks import ALONE, MAIN, Ranks
from intraslice_core.refit import ModuleOutcome
from intraslice_core.reports.schema import LayerReport, ModuleReport, SpectrumReport
from intraslice_core.resume_state import FinishedLayer, ResumeState
from intraslice_core.run import Run
from intraslice_core.statistics_cache import DenseStates, ModelStatistics

if TYPE_CHECKING:
    from intraslice_core.decoder_layer import LayerWeights

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class CompressionWork:
    """An opened model and every decision about its compression."""

    reader: CheckpointReader
    config: CompressionConfig
    canonical: CanonicalSettings
    """Settings of the dense model in the canonical architecture."""
    target_type: str
    """Model type that decides what the target supports."""
    geometry: ModelGeometry
    budget: Budget
    device: torch.device
    dtype: torch.dtype
    stored_dtype: torch.dtype
    """Data type of both the dense and the compressed checkpoint."""
    fingerprint: str
    """SHA-256 of the dense model; empty if nothing is cached or resumed."""
    prefix: tuple[int, ...]
    """Tokens that every calibration sequence begins with (`calibration.text_prefix`)."""
    statistics: ModelStatistics | None
    resume_state: ResumeState | None
    memory: TensorMemory
    """Memory for the hidden states and for the sensitivity measurement."""
    batch: BatchSize
    """Sequences per forward pass, which any stage may lower.

    Keys of cached content have the requested size: on a device of the same class, another run would
    lower it alike.
    """
    ranks: Ranks = ALONE
    """Ranks that divide the calibration sequences among them."""
    in_place: bool = False
    """True if wide second moments are factorised in place, which rounds differently."""

    @property
    def layers(self) -> DenseLayerReader:
        """Return a new reader of the dense model's layers, for one pass or several."""
        return DenseLayerReader(self.reader, self.device, self.dtype, self.memory, self.ranks)

    @property
    def method(self) -> CompressionMethod:
        """Return the method's options for this model."""
        return method_for(self.config.method, output_norms=self.canonical["output_norms"])

    @property
    def result_geometry(self) -> ModelGeometry:
        """Return the dimensions with the biases that the method adds."""
        return self.geometry.with_output_biases() if self._adds_biases else self.geometry

    @property
    def result_settings(self) -> CanonicalSettings:
        """Return the canonical settings of the compressed model, but for the layers' shapes."""
        if self.method.slices_residual and self.budget.ratio != 0.0:
            return self.canonical | {"residual_shortcuts": True}
        if not self._adds_biases:
            return self.canonical
        return self.canonical | {"attention_output_bias": True, "mlp_output_bias": True}

    @property
    def _adds_biases(self) -> bool:
        return adds_output_biases(self.config)

    def key(self, **facts: object) -> str:
        """Return the key of content that depends on this work and on `facts`.

        Neither threads nor `in_place` are part of it: both change with the number of ranks on a
        machine, and a run resumes with any.
        """
        return content_key(
            model=self.fingerprint,
            place=machine_class(self.device),
            dtype=str(self.dtype),
            **facts,
        )


class LayerLoop:
    """Moves the hidden states through the layers, compressing each or restoring its result."""

    def __init__(self, work: CompressionWork, tokens: Tensor, shapes: Shapes, run: Run) -> None:
        self._work = work
        self._layers = work.layers
        self._shapes = shapes
        self._run = run
        tokens, left_out = _grouped(work, tokens)
        self._hidden_states = self._embed(tokens, left_out)
        self._dense_states = _dense_states(work, tokens, left_out)
        self._resume_state = work.resume_state
        self._key = work.key(
            config=work.config.model_dump(mode="json", exclude={"devices", "recover"}),
            method=asdict(work.method),
            tokens=calibration_hash(tokens),
            prefix=work.prefix,
            left_out=left_out,
            plan=shapes.plan.model_dump(mode="json"),
        )
        self._copy_memory = HostMemory(run.offload_dir)
        self._copies: dict[str, Tensor] = {}
        """Hidden states before the current layer, where its batches may have to be lowered."""
        self._fitting_size = 0
        """Batch size with which a layer was compressed on this device; 0 before the first."""
        self._has_begun = False
        """Whether a batch of the current layer has passed a part of it."""
        self._passed = self._restore()

    def outer_tensors(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return the result's tensors for a tensor outside the layers, by canonical name."""
        return {name: tensor}

    def finish(self, layer: int) -> FinishedLayer:
        """Return the layer as it will be saved, and move the hidden states past it."""
        self._has_begun = False
        restored = self._restored(layer)
        if restored:
            if layer >= self._passed:
                self._with_less_memory(lambda: self._replay(layer, restored))
            self._run.resumed_layers += 1
            self._run.layer_done(restored.report, self._work.geometry, restored=True)
            return restored
        if layer < self._passed:
            raise RuntimeError(f"layer {layer} disappeared from the resume state during the run")
        finished = self._with_less_memory(lambda: self._compress(layer))
        if not self._is_passed_on(layer):
            self._fitting_size = self._work.batch.size
        if self._resume_state is not None:
            self._resume_state.save_layer(self._key, finished)
            self._save_hidden_states(self._resume_state, layer + 1)
        self._run.layer_done(finished.report, self._work.geometry)
        return finished

    def _restored(self, layer: int) -> FinishedLayer | None:
        """Return the result of an interrupted run, which the main rank reads; None without it."""
        state, key = self._resume_state, self._key
        return self._work.ranks.computed(
            MAIN, lambda: None if state is None else state.layer(key, layer)
        )

    # -- smaller batches -------------------------------------------------------------------

    def _with_less_memory(self, attempt: Callable[[], _Result]) -> _Result:
        """Return the result of a pass through a layer, repeated with smaller batches if need be.

        Accumulators are those of the attempt. The hidden states, which it moves in place, are
        copied before, as a batch may fail when others have moved already. Layers are alike: where
        one has fitted with room to spare, the next is passed without copies.

        Raises:
            OutOfDeviceMemoryError: if a batch of one sequence does not fit the device, or a layer
                fails where one like it had room.
        """
        batch = self._work.batch
        if self._may_be_repeated():
            self._copy_states()
            return batch.repeat(lambda _size: attempt(), undo=self._restore_copies)
        self._copies = {}
        with out_of_memory_reported(batch.lower if batch.size == 1 else batch.setting):
            return attempt()

    def _may_be_repeated(self) -> bool:
        """Report whether smaller batches are possible and may be needed, on one rank or more."""
        work = self._work
        if work.device.type == "cpu" or work.batch.size == 1 or not work.method.uses_hidden_states:
            return False
        if self._fitting_size != work.batch.size:
            return True
        return any_rank_lacks_room(work.ranks, work.device)

    def _copy_states(self) -> None:
        """Copy the hidden states to host memory."""
        for name, tensor in self._hidden_states.tensors().items():
            if name not in self._copies:
                self._copies[name] = self._copy_memory.empty(tensor.shape, tensor.dtype)
            self._copies[name].copy_(tensor)

    def _restore_copies(self) -> None:
        for name, tensor in self._hidden_states.tensors().items():
            tensor.copy_(self._copies[name])

    # -- hidden states ---------------------------------------------------------------------

    def _embed(self, tokens: Tensor, left_out: int) -> HiddenStates:
        """Return the embedded sequences of this rank, in compute dtype."""
        work, samples = self._work, len(tokens)
        tokens = tokens[work.ranks.share(samples)]
        hidden = work.memory.empty((*tokens.shape, work.geometry.hidden_size), work.dtype)
        for row, sequence in enumerate(tokens):
            hidden[row] = self._layers.embed(sequence)
        return HiddenStates(
            compressed=hidden,
            dense=work.memory.copy(hidden) if work.method.dense_target else None,
            prefix_length=len(work.prefix),
            left_out=left_out,
            samples=samples,
        )

    def _restore(self) -> int:
        """Return how many layers the restored hidden states have passed.

        Those of several ranks are not saved: they pass the finished layers again.
        """
        state = self._resume_state
        if state is None or not self._work.ranks.is_alone:
            return 0
        finished = 0
        while state.has_layer(self._key, finished):
            finished += 1
        if finished == self._work.geometry.num_hidden_layers:
            return finished  # nothing is left that needs the hidden states
        return state.restore_hidden_states(self._key, self._hidden_states.tensors(), finished)

    def _save_hidden_states(
        self, resume_state: ResumeState, layers: int, *, at_once: bool = False
    ) -> None:
        """Save the hidden states that have passed so many layers; not those of several ranks."""
        if not self._work.ranks.is_alone:
            return
        hidden = self._hidden_states.tensors()
        warning = resume_state.save_hidden_states(self._key, hidden, layers, at_once=at_once)
        if warning is not None and warning not in self._run.warnings:
            self._run.warnings.append(warning)

    def _compress(self, layer: int) -> FinishedLayer:
        plan, geometry = self._shapes.plan.layers[layer], self._work.geometry
        if self._is_passed_on(layer):
            return self._pass_on(layer)
        message = _describe_sizes(geometry, plan)
        outcome = self._compressor(layer, message, self._layers.weights(layer)).run()
        self._require_finite(layer)
        return FinishedLayer(
            tensors=self._stored(layer, outcome.weights),
            kept_pairs=outcome.kept_pairs,
            report=layer_report(layer, plan, outcome),
            residual_parts={
                name: index.cpu() for name, index in residual_parts(outcome.weights).items()
            },
        )

    def _pass_on(self, layer: int) -> FinishedLayer:
        """Return a layer that is removed or keeps its dense weights, past which states move."""
        started, work = time.perf_counter(), self._work
        plan, dense = self._shapes.plan.layers[layer], self._layers.weights(layer)
        message = "removed" if plan.is_removed else "unchanged"
        self._report(layer, message, 0.0)
        weights = dense
        if plan.is_removed:
            weights, pairs = slicing.remove_layer(dense), slicing.no_pairs(work.device)
        else:
            pairs = torch.arange(work.geometry.rotary_pairs)
            pairs = pairs.expand(work.geometry.num_key_value_heads, -1)
        rounded = slicing.rounded_to(weights, work.stored_dtype)
        self._compressor(layer, message, dense).replay(rounded)
        self._require_finite(layer)
        return FinishedLayer(
            tensors={} if plan.is_removed else self._stored(layer, weights),
            kept_pairs=pairs,
            report=LayerReport(
                layer=layer,
                plan=plan,
                attention=_module_report(ModuleOutcome(module="attention")),
                mlp=_module_report(ModuleOutcome(module="mlp")),
                seconds=time.perf_counter() - started,
            ),
        )

    def _stored(self, layer: int, weights: LayerWeights) -> dict[str, Tensor]:
        """Return a layer's tensors as the checkpoint stores them, by full canonical names."""
        return {
            name: tensor.to("cpu", self._work.stored_dtype)
            for name, tensor in named_tensors(layer, weights).items()
        }

    def _replay(self, layer: int, finished: FinishedLayer) -> None:
        dense = self._layers.weights(layer)
        self._compressor(layer, "resumed", dense).replay(self._weights(layer, finished, dense))
        self._require_finite(layer)

    def _weights(self, layer: int, finished: FinishedLayer, dense: LayerWeights) -> LayerWeights:
        work = self._work
        prefix, plan = layer_prefix(layer), self._shapes.plan.layers[layer]
        if plan.is_removed:
            return slicing.remove_layer(dense)
        tensors = {name.removeprefix(prefix): tensor for name, tensor in finished.tensors.items()}
        weights = layer_weights(tensors, plan.num_key_value_heads, work.device, work.dtype)
        if finished.residual_parts:
            weights = with_residual_parts(weights, finished.residual_parts)
        if plan.qk_head_dim == work.geometry.head_dim:
            return weights
        return replace(weights, rotary_pairs=finished.kept_pairs.to(work.device))

    def _compressor(self, layer: int, message: str, dense: LayerWeights) -> LayerCompressor:
        return LayerCompressor(
            dense,
            self._shapes.plan.layers[layer],
            self._hidden_states,
            self._context(layer, message),
        )

    def _context(self, layer: int, message: str) -> LayerContext:
        work, states, dense = self._work, self._hidden_states, self._layers
        sensitivity, units = self._shapes.sensitivity, self._shapes.units
        parts = self._shapes.residual_parts
        return LayerContext(
            layer=layer,
            settings=dense.settings(layer),
            rotary=dense.rotary(layer, states.compressed.shape[1]),
            method=work.method,
            batch_size=work.batch.size,
            device=work.device,
            stored_dtype=work.stored_dtype,
            before_batch=partial(self._report, layer, message),
            sensitivity=sensitivity[layer].to(work.device) if sensitivity else None,
            dense_states=self._dense_states,
            units=units[layer].to(work.device) if units else None,
            residual_parts=parts[layer].to(work.device) if parts else None,
            adds_output_biases=adds_output_biases(work.config),
            ranks=work.ranks,
        )

    def _report(self, layer: int, message: str, done: float) -> None:
        """Report the finished fraction of a layer; raises if the run is to stop.

        Before a layer has begun, the hidden states are saved then, as they have passed all earlier
        layers and no further one in part.
        """
        layers = self._work.geometry.num_hidden_layers
        text = f"layer {layer + 1}/{layers}: {message}"
        try:
            self._run.report(Stage.COMPRESS, text, (layer + done) / layers, layer, layers)
        except CompressionCancelledError:
            if not self._has_begun and layer > 0 and self._resume_state is not None:
                self._save_hidden_states(self._resume_state, layer, at_once=True)
            raise
        self._has_begun = True

    def _is_passed_on(self, layer: int) -> bool:
        """Report whether a layer is removed or unchanged, so that the states only pass it."""
        return self._shapes.plan.layers[layer].is_removed or self._is_unchanged(layer)

    def _is_unchanged(self, layer: int) -> bool:
        """Return whether a layer keeps its dense weights, in methods that remove whole layers.

        Layers after a removed one do not where they are refitted to the dense hidden states.
        """
        method, plan = self._work.method, self._shapes.plan
        if method.layers is None:
            return False
        first = 0 if method.dense_target else layer
        dense = self._work.geometry.dense_layer()
        return all(shape == dense for shape in plan.layers[first : layer + 1])

    def _require_finite(self, layer: int) -> None:
        last = self._hidden_states.compressed[-1:].to(self._work.device)
        if not torch.isfinite(last).all():
            raise NumericalError(
                "the compressed hidden states contain NaN or infinity", layer=layer
            )


def _describe_sizes(geometry: ModelGeometry, plan: LayerPlan) -> str:
    """Return the dense and the kept sizes of a layer, for progress."""
    width = f"MLP {geometry.intermediate_size}→{plan.intermediate_size}"
    if plan.residual_parts is not None:
        sizes = plan.residual_parts
        return (
            f"{width}, residual {geometry.hidden_size}→reads {sizes.attention_reads} and "
            f"{sizes.mlp_reads}, writes {sizes.attention_writes} and {sizes.mlp_writes}"
        )
    return (
        f"{width}, q/k {geometry.head_dim}→{plan.qk_head_dim}, "
        f"v {geometry.head_dim}→{plan.v_head_dim}"
    )


def _grouped(work: CompressionWork, tokens: Tensor) -> tuple[Tensor, int]:
    """Return the sequences, and how many of the last are the group of sources to leave out.

    They are sorted by group only if the method chooses dampings by sources.
    """
    if work.method.validation == "held_out":
        return tokens, 0
    return group_sources(tokens, sequence_groups(work.config.resolved_calibration))


def _dense_states(work: CompressionWork, tokens: Tensor, left_out: int) -> DenseStates | None:
    """Return the cache of dense hidden states for runs with the same tokens and batches."""
    if work.statistics is None or not work.ranks.is_alone:
        return None
    return work.statistics.dense_states(
        tokens=calibration_hash(tokens),
        batch_size=work.config.batch_size,
        method=work.config.method,
        left_out=left_out,
    )


def layer_report(layer: int, plan: LayerPlan, outcome: LayerOutcome) -> LayerReport:
    """Return the report on a compressed layer."""
    return LayerReport(
        layer=layer,
        plan=plan,
        attention=_module_report(outcome.attention),
        mlp=_module_report(outcome.mlp),
        seconds=outcome.seconds,
    )


def _module_report(outcome: ModuleOutcome) -> ModuleReport:
    return ModuleReport(
        module=outcome.module,
        relative_error=outcome.relative_error,
        explained_energy=outcome.explained_energy,
        damping=outcome.damping,
        spectra=tuple(SpectrumReport(**asdict(spectrum)) for spectrum in outcome.spectra),
    )
