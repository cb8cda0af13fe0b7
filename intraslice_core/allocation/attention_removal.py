"""Second stage of 2SSP (arXiv 2501.17771): attentions are removed one by one.

Each step measures the next-token loss of the model without each remaining attention, MLPs cut as
they will be, and removes the attention whose model has the least. All candidates of a step pass
the layers together; they share the hidden states before the layer that they lose. Ranks divide the
candidates among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from intraslice_core import decoder_layer, slicing
from intraslice_core.checkpoints.dense_model import DenseLayers, mean_loss
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.sensitivity.dense_pass import sequences_at_once
from intraslice_core.transfers import device_batches
from intraslice_core.unit_removal import keep_best

MAX_TOKENS = 2048
"""Tokens that the loss is measured on, as in the authors' code: beginnings of the sequences."""


@dataclass(frozen=True, kw_only=True)
class AttentionRemoval:
    """The model with cut MLPs, from which attentions are removed."""

    layers: DenseLayers
    tokens: Tensor
    """(sequences, length), int64; of each sequence only a beginning is used."""
    neurons: tuple[Tensor, ...]
    """Scores of each layer's neurons, (intermediate_size,)."""
    widths: tuple[int, ...]
    """Neurons that each layer keeps."""
    batch_size: int
    stored_dtype: torch.dtype
    """Dtype of the saved model, to which cut layers are rounded."""
    prefix_length: int = 0
    fixed: frozenset[int] = frozenset()
    """Layers that keep their attention."""

    def least_needed(self, count: int, before_batch: Callable[[float], None]) -> tuple[int, ...]:
        """Return the layers whose attention is removed, ascending.

        Args:
            count: number of attentions to remove.
            before_batch: callback with the finished fraction; may raise to stop.

        Raises:
            NumericalError: naming the layer, if a weight is not finite.
        """
        removed: tuple[int, ...] = ()
        for step in range(count):
            losses = self.losses(removed, partial(_report, before_batch, step, count))
            removed = (*removed, min(losses, key=lambda layer: (losses[layer], layer)))
        return tuple(sorted(removed))

    def losses(
        self, removed: tuple[int, ...], before_batch: Callable[[float], None]
    ) -> dict[int, float]:
        """Return the next-token loss without each further attention, by layer.

        Args:
            removed: layers that have lost their attention already.
            before_batch: callback with the finished fraction; may raise to stop.
        """
        tokens = self.tokens[:, : max(MAX_TOKENS // len(self.tokens), 2 + self.prefix_length)]
        current = self.layers.memory.copy(self.layers.embed(tokens).cpu())
        ranks, candidates = self.layers.ranks, dict[int, Tensor]()
        for layer in range(self.layers.num_layers):
            before_batch(layer / self.layers.num_layers)
            weights = self._cut(layer)
            without = slicing.remove_attention(weights)
            is_candidate = layer not in removed and layer not in self.fixed
            if is_candidate and ranks.owner(layer) == ranks.rank:
                candidates[layer] = self.layers.memory.copy(current)
            own = without if layer in removed else weights
            self._advance(layer, own, current)
            for candidate, hidden in candidates.items():
                self._advance(layer, without if candidate == layer else own, hidden)

        def own_losses() -> dict[int, float]:
            return {
                layer: mean_loss(self.layers, hidden, tokens, prefix_length=self.prefix_length)
                for layer, hidden in candidates.items()
            }

        return {layer: loss for own in ranks.gathered(own_losses) for layer, loss in own.items()}

    def _cut(self, layer: int) -> LayerWeights:
        """Return a layer with its MLP cut, as it will be saved."""
        weights = self.layers.weights(layer)
        neurons = keep_best(self.neurons[layer].to(self.layers.device), self.widths[layer])
        output = slicing.select_inputs(weights.mlp_output, neurons)
        cut = replace(slicing.slice_neurons(weights, neurons), mlp_output=output)
        return slicing.rounded_to(cut, self.stored_dtype)

    def _advance(self, layer: int, weights: LayerWeights, hidden: Tensor) -> None:
        """Overwrite hidden states, (sequences, length, hidden_size), by those after a layer."""
        length, device = hidden.shape[1], self.layers.device
        settings, rotary = self.layers.settings(layer), self.layers.rotary(layer, length)
        at_once = sequences_at_once(self.batch_size, length, device)
        for batch in device_batches(hidden, at_once, device):
            batch.replace(decoder_layer.forward(batch.values, weights, settings, rotary))


def _report(before_batch: Callable[[float], None], step: int, steps: int, done: float) -> None:
    """Report the finished fraction of all steps."""
    before_batch((step + done) / steps)
