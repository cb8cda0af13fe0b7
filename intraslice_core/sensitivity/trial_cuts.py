"""Trial cuts (docs/method.md, section 4): cut one module of one layer and measure the loss.

The loss is the divergence from the dense model. On a few sequences the increase of the next-token
loss is mostly noise: a cut that costs 0.01 nats measures between -0.02 and 0.04.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers, divergences
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.plan import Module


@dataclass(frozen=True, kw_only=True)
class TrialCut:
    """Predicted loss increase and measured divergence of a cut, in nats per token."""

    layer: int
    module: Module
    cut: float
    """Fraction of the module's dimensions that is removed."""
    predicted: float
    measured: float


class TrialCuts:
    """Hidden states of models that are dense except for one cut module, advanced layer by layer."""

    def __init__(
        self, layers: DenseLayers, tokens: Tensor, *, batch_size: int, prefix_length: int = 0
    ) -> None:
        self._layers = layers
        self._prefix_length = prefix_length
        self._batch_size = batch_size
        self._dense = layers.memory.copy(layers.embed(tokens).cpu())
        self._trials: list[tuple[TrialCut, Tensor]] = []

    def pass_layer(self, layer: int, cuts: Iterable[tuple[TrialCut, LayerWeights]]) -> None:
        """Advance all hidden states past a dense layer and start a new trial for each of its cuts.

        Args:
            layer: number of the layer.
            cuts: trials with the layer's cut weights; their `layer` is filled in here.
        """
        weights = self._layers.weights(layer)
        started = [
            (replace(trial, layer=layer), self._layers.memory.copy(self._dense), cut)
            for trial, cut in cuts
        ]
        for _, hidden, cut in started:
            self._advance(layer, hidden, cut)
        for hidden in (*(hidden for _, hidden in self._trials), self._dense):
            self._advance(layer, hidden, weights)
        self._trials += [(trial, hidden) for trial, hidden, _ in started]

    def measured(self) -> tuple[TrialCut, ...]:
        """Return all trials with their measured losses, after the last layer was passed."""
        return tuple(
            replace(trial, measured=self._divergence(hidden)) for trial, hidden in self._trials
        )

    def _divergence(self, hidden: Tensor) -> float:
        """Return the mean divergence from the dense model, in nats per token."""
        tokens = divergences(self._layers, self._dense, hidden, prefix_length=self._prefix_length)
        return float(tokens.mean())

    def _advance(self, layer: int, hidden: Tensor, weights: LayerWeights) -> None:
        """Advance hidden states, (sequences, length, hidden_size), past the layer, in place."""
        settings = self._layers.settings(layer)
        rotary = self._layers.rotary(layer, hidden.shape[1])
        device = weights.up.weight.device
        for rows in torch.split(hidden, self._batch_size):
            rows.copy_(decoder_layer.forward(rows.to(device), weights, settings, rotary))
