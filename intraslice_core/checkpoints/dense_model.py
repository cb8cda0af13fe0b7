"""The dense model, a layer at a time, from the files that hold it."""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.reader import CheckpointReader, check_finite
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Norm, Rotary
from intraslice_core.device import HostMemory
from intraslice_core.families import canonical

LOGITS_AT_ONCE = 2**23
"""In memory at once: 32 MiB in float32, and as much again for each step of a loss."""


class DenseLayers(Protocol):
    """Where a dense model's parts come from."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""

    @property
    def logit_rows(self) -> int:
        """Rows that are asked for logits at once."""

    @property
    def memory(self) -> HostMemory:
        """Where hidden states of many sequences are kept."""

    def weights(self, layer: int) -> LayerWeights:
        """A layer's weights on the device, in the compute dtype."""

    def settings(self, layer: int) -> LayerSettings:
        """What the layer needs besides weights."""

    def rotary(self, layer: int, length: int) -> Rotary:
        """The layer's rotary tables."""

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, (…, hidden_size)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """What the model predicts from the last layer's output, (rows, vocabulary), float32."""


class DenseLayerReader:
    """`DenseLayers` of a checkpoint that is read lazily."""

    def __init__(
        self,
        reader: CheckpointReader,
        device: torch.device,
        dtype: torch.dtype,
        memory: HostMemory | None = None,
    ) -> None:
        self.memory = memory or HostMemory()
        self._reader = reader
        self._canonical = reader.family.canonical_settings(reader.config)
        self._device = device
        self._dtype = dtype

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self._canonical["num_hidden_layers"])

    @property
    def logit_rows(self) -> int:
        """Rows that are asked for logits at once."""
        return max(LOGITS_AT_ONCE // int(self._reader.config.vocab_size), 1)

    def weights(self, layer: int) -> LayerWeights:
        """A layer's weights, checked, on the device, in the compute dtype."""
        family, reader = self._reader.family, self._reader
        prefix = family.layer_prefix(layer)
        tensors = reader.tensors(prefix)
        for name, tensor in tensors.items():
            check_finite(prefix + name, tensor)
        named = family.canonical_layer(reader.config, layer, tensors)
        groups = self._canonical["num_key_value_heads"]
        return canonical.layer_weights(named, groups, self._device, self._dtype)

    def settings(self, layer: int) -> LayerSettings:
        """What the layer needs besides weights."""
        return canonical.layer_settings(self._canonical, layer)

    def rotary(self, layer: int, length: int) -> Rotary:
        """The layer's rotary tables."""
        return canonical.rotary_tables(self._canonical, layer, length, self._device)

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, (…, hidden_size), on the CPU."""
        table = self._reader.tensor(self._reader.family.embedding)
        return canonical.embedded(self._canonical, table[tokens.cpu()]).to(self._dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the model predicts, (rows, vocabulary), float32."""
        norm, weight, bias = self._head
        normed = decoder_layer.apply_norm(hidden.to(self._device), norm, self.settings(0))
        logits = F.linear(normed, weight, bias).float()
        cap = self._canonical["final_logit_softcapping"]
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @functools.cached_property
    def _head(self) -> tuple[Norm, Tensor, Tensor | None]:
        """Final norm and output head."""
        # Gradients pass through it, whoever asks for it first: nothing of it may be an inference
        # tensor.
        with torch.inference_mode(False):
            return self._read_head()

    def _read_head(self) -> tuple[Norm, Tensor, Tensor | None]:
        names = self._reader.family.outer_names(self._reader.config)

        def at(name: str) -> Tensor | None:
            if name not in names:
                return None
            return self._reader.tensor(names[name]).to(self._device, self._dtype)

        weight, norm = at("lm_head.weight"), at("model.norm.weight")
        weight = at(canonical.EMBEDDING) if weight is None else weight
        assert norm is not None  # every checkpoint has both: the reader has checked
        assert weight is not None
        return Norm(weight=norm, bias=at("model.norm.bias")), weight, at("lm_head.bias")


def mean_loss(layers: DenseLayers, hidden: Tensor, tokens: Tensor) -> float:
    """Mean next-token loss in nats, from the last layer's output.

    Args:
        layers: of the model, for its head.
        hidden: (sequences, length, hidden_size).
        tokens: (sequences, length).
    """
    rows, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    total = 0.0
    for start in range(0, len(targets), layers.logit_rows):
        part = slice(start, start + layers.logit_rows)
        logits = layers.logits(rows[part])
        total += float(F.cross_entropy(logits, targets[part].to(logits.device), reduction="sum"))
    return total / len(targets)
