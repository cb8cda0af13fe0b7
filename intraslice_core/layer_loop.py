"""The loop over layers: each is compressed, or taken from the resume state, and handed on.

Hidden states of the calibration sequences pass through the layers as they are compressed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intraslice_core.allocation.budget import Budget
from intraslice_core.allocation.shapes import Shapes
from intraslice_core.cache import (
    DenseStates,
    FinishedLayer,
    LayerCheckpoints,
    SharedStatistics,
    content_key,
)
from intraslice_core.calibration import calibration_hash
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.device import HostMemory, rounding_class
from intraslice_core.errors import NumericalError
from intraslice_core.families.canonical import (
    CanonicalSettings,
    embedded,
    layer_prefix,
    layer_weights,
    named_tensors,
)
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.layer_compressor import LayerCompressor, LayerOutcome
from intraslice_core.methods import METHODS
from intraslice_core.plan import LayerPlan, ModelGeometry
from intraslice_core.progress import Stage
from intraslice_core.reports.schema import LayerReport, ModuleReport, SpectrumReport
from intraslice_core.run import Run

if TYPE_CHECKING:
    from intraslice_core.decoder_layer import LayerWeights
    from intraslice_core.layer_compressor import ModuleOutcome


@dataclass(frozen=True, kw_only=True)
class CompressionWork:
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
    def layers(self) -> DenseLayerReader:
        """The dense model's."""
        return DenseLayerReader(self.reader, self.device, self.dtype, self.memory)

    def key(self, **facts: object) -> str:
        """Names what depends on this work and on `facts`."""
        return content_key(
            model=self.fingerprint,
            place=rounding_class(self.device),
            dtype=str(self.dtype),
            **facts,
        )


class LayerLoop:
    """Both streams on their way through the layers, each of which is compressed or was before."""

    def __init__(self, work: CompressionWork, tokens: Tensor, shapes: Shapes, run: Run) -> None:
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

    def _weights(self, layer: int, kept: FinishedLayer) -> LayerWeights:
        work = self._work
        prefix, plan = layer_prefix(layer), self._shapes.plan.layers[layer]
        tensors = {name.removeprefix(prefix): tensor for name, tensor in kept.tensors.items()}
        weights = layer_weights(tensors, plan.num_key_value_heads, work.device, work.dtype)
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

        known = self._shapes.sensitivity
        context = LayerContext(
            layer=layer,
            settings=dense.settings(layer),
            rotary=dense.rotary(layer, streams.compressed.shape[1]),
            method=METHODS[work.config.method],
            batch_size=work.config.batch_size,
            device=work.device,
            stored_dtype=work.stored_dtype,
            before_batch=before_batch,
            sensitivity=known[layer].to(work.device) if known else None,
            dense_states=self._states,
        )
        return LayerCompressor(
            dense.weights(layer), self._shapes.plan.layers[layer], streams, context
        )

    def _require_finite(self, layer: int) -> None:
        if not torch.isfinite(self._streams.compressed[-1]).all():
            raise NumericalError("the compressed stream holds NaN or infinity", layer=layer)


def _embed(work: CompressionWork, tokens: Tensor) -> HiddenStates:
    """Both streams at the embedding, in host memory and compute dtype."""
    table = work.reader.tensor(work.reader.family.embedding)
    hidden = work.memory.empty((*tokens.shape, table.shape[1]), work.dtype)
    for row, sequence in enumerate(tokens):
        hidden[row] = embedded(work.canonical, table[sequence].to(work.dtype))
    dense_target = METHODS[work.config.method].dense_target
    return HiddenStates(compressed=hidden, dense=work.memory.copy(hidden) if dense_target else None)


def _dense_states(work: CompressionWork, tokens: Tensor) -> DenseStates | None:
    """Where runs with the same tokens, walked over alike, share the dense stream."""
    if work.shared is None:
        return None
    return work.shared.dense_states(
        tokens=calibration_hash(tokens),
        batch_size=work.config.batch_size,
        method=work.config.method,
    )


def _layer_report(layer: int, plan: LayerPlan, outcome: LayerOutcome) -> LayerReport:
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
        spectra=tuple(SpectrumReport(**asdict(one)) for one in outcome.spectra),
    )
