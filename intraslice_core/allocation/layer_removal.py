"""Removal of decoder layers one by one by macro influence (FuseGPT, arXiv 2411.14507).

The macro influence of a layer is `1 - E_t[cos(X_L,t, X_L,t without it)]` with the model's last
hidden states, before the final norm as in the authors' code. Each step measures it for every
remaining layer and removes the least influential one. All candidates of a step pass the layers
together; they share the hidden states before the layer that they lose. Ranks divide the candidates
among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.errors import NumericalError
from intraslice_core.files import atomic_file
from intraslice_core.sensitivity.block_influence import InfluenceAccumulator
from intraslice_core.sensitivity.dense_pass import sequences_at_once
from intraslice_core.transfers import device_batches

MAX_TOKENS = 1024
"""Tokens that influences are measured on: beginnings of the sequences.

The mean of a cosine needs fewer tokens than a loss, and every step passes all layers many times.
"""


def ignore_order(_order: tuple[int, ...]) -> None:
    """Do nothing with the order of removal."""


@dataclass(frozen=True, kw_only=True)
class LayerRemovalSearch:
    """The dense model, from which layers are removed."""

    layers: DenseLayers
    tokens: Tensor
    """(sequences, length), int64; of each sequence only a beginning is used."""
    batch_size: int
    prefix_length: int = 0

    def order(
        self,
        steps: int,
        before_batch: Callable[[float], None],
        *,
        beginning: Sequence[int] = (),
        on_step: Callable[[tuple[int, ...]], None] = ignore_order,
    ) -> tuple[int, ...]:
        """Return layers in the order of removal, (steps,).

        Args:
            steps: number of layers.
            before_batch: callback with the finished fraction; may raise to stop.
            beginning: first layers of the order, from an earlier search.
            on_step: called with the order after each measurement.

        Raises:
            NumericalError: naming the layer without which the hidden states are not finite.
        """
        removed = tuple(beginning[:steps])
        for step in range(len(removed), steps):
            influences = self.influences(removed, partial(_report, before_batch, step, steps))
            least = min(influences, key=lambda layer: (influences[layer], layer))
            removed = (*removed, least)
            on_step(removed)
        return removed

    def influences(
        self, removed: tuple[int, ...], before_batch: Callable[[float], None]
    ) -> dict[int, float]:
        """Return the macro influence of each remaining layer, by layer.

        Args:
            removed: layers that are removed already.
            before_batch: callback with the finished fraction; may raise to stop.
        """
        tokens = self.tokens[:, : max(MAX_TOKENS // len(self.tokens), 1 + self.prefix_length)]
        current = self.layers.memory.copy(self.layers.embed(tokens).cpu())
        ranks, candidates = self.layers.ranks, dict[int, Tensor]()
        for layer in range(self.layers.num_layers):
            before_batch(layer / self.layers.num_layers)
            if layer in removed:
                continue
            without = self.layers.memory.copy(current)
            self._advance(layer, (current, *candidates.values()))
            if ranks.owner(layer) == ranks.rank:
                candidates[layer] = without

        def own_influences() -> dict[int, float]:
            return {
                layer: self._influence(layer, current, rows) for layer, rows in candidates.items()
            }

        return {
            layer: influence
            for own in ranks.gathered(own_influences)
            for layer, influence in own.items()
        }

    def _advance(self, layer: int, states: tuple[Tensor, ...]) -> None:
        """Overwrite hidden states by those after a layer, (sequences, length, hidden_size) each."""
        weights, settings = self.layers.weights(layer), self.layers.settings(layer)
        length, device = states[0].shape[1], self.layers.device
        rotary = self.layers.rotary(layer, length)
        at_once = sequences_at_once(self.batch_size, length, device)
        for hidden in states:
            for batch in device_batches(hidden, at_once, device):
                batch.replace(decoder_layer.forward(batch.values, weights, settings, rotary))

    def _influence(self, layer: int, whole: Tensor, without: Tensor) -> float:
        """Return one minus the mean cosine of last hidden states with and without a layer."""
        accumulator = InfluenceAccumulator(self.prefix_length)
        accumulator.add(whole, without)
        try:
            return accumulator.influence()
        except NumericalError as error:
            raise NumericalError(error.message, layer=layer, hint=error.hint) from error


def _report(before_batch: Callable[[float], None], step: int, steps: int, done: float) -> None:
    """Report the finished fraction of all steps."""
    before_batch((step + done) / steps)


# -- cache -------------------------------------------------------------------------------------
#
# Each step is a file of its own, because files are copied to other machines and do not change.

_ORDER = "order"


def save_order(directory: Path, key: str, order: tuple[int, ...]) -> str:
    """Write the order of removal atomically and return the file's name."""
    name = f"{_file_prefix(key)}{len(order):05d}.safetensors"
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_file(directory / name) as partial_file:
        save_file({_ORDER: torch.tensor(order, dtype=torch.int64)}, partial_file)
    return name


def load_order(directory: Path, key: str) -> tuple[int, ...]:
    """Return the longest saved order of removal; empty if there is none."""
    for file in sorted(directory.glob(f"{_file_prefix(key)}*.safetensors"), reverse=True):
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                return tuple(opened.get_tensor(_ORDER).tolist())
        except (FileNotFoundError, SafetensorError):  # removed meanwhile, or damaged
            continue
    return ()


def _file_prefix(key: str) -> str:
    return f"layer-order-{key[:32]}-"
