"""Cut one module of one layer, leave all others alone, and measure the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers, mean_loss
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.plan import Module


@dataclass(frozen=True, kw_only=True)
class TrialCut:
    """Loss increase per token that was predicted for a cut, and that was measured."""

    layer: int
    module: Module
    cut: float
    """Fraction of the module's dimensions."""
    predicted: float
    measured: float


class TrialCuts:
    """Streams of models that are dense but for one module, all on their way through the layers."""

    def __init__(self, layers: DenseLayers, tokens: Tensor, *, batch_size: int) -> None:
        self._layers = layers
        self._tokens = tokens
        self._batch_size = batch_size
        self._dense = layers.memory.copy(layers.embed(tokens).cpu())
        self._cut: list[tuple[TrialCut, Tensor]] = []

    def pass_layer(self, layer: int, cuts: Iterable[tuple[TrialCut, LayerWeights]]) -> None:
        """Move all streams past a dense layer, and begin one for every cut of it."""
        weights = self._layers.weights(layer)
        begun = [
            (replace(trial, layer=layer), self._layers.memory.copy(self._dense), cut)
            for trial, cut in cuts
        ]
        for _, stream, cut in begun:
            self._pass(layer, stream, cut)
        for stream in (*(stream for _, stream in self._cut), self._dense):
            self._pass(layer, stream, weights)
        self._cut += [(trial, stream) for trial, stream, _ in begun]

    def measured(self) -> tuple[TrialCut, ...]:
        """All trials with their losses, once the last layer is passed."""
        dense = mean_loss(self._layers, self._dense, self._tokens)
        return tuple(
            replace(trial, measured=mean_loss(self._layers, stream, self._tokens) - dense)
            for trial, stream in self._cut
        )

    def _pass(self, layer: int, stream: Tensor, weights: LayerWeights) -> None:
        """Move a stream past the layer, in place."""
        settings = self._layers.settings(layer)
        rotary = self._layers.rotary(layer, stream.shape[1])
        device = weights.up.weight.device
        for rows in torch.split(stream, self._batch_size):
            rows.copy_(decoder_layer.forward(rows.to(device), weights, settings, rotary))
