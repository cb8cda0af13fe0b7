"""Reader of the dense model for forward passes, one decoder layer in memory at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.layer_prefetch import LayerPrefetch
from intraslice_core.checkpoints.reader import CheckpointReader, check_finite
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Norm, Rotary
from intraslice_core.device import HostMemory, TensorMemory
from intraslice_core.errors import NumericalError
from intraslice_core.families import canonical
from intraslice_core.linalg import require_finite
from intraslice_core.ranks import ALONE, Ranks

LOGITS_AT_ONCE = 2**22
"""Logits in memory at once: 16 MiB in float32, and as much again for each step of a loss.

With 85 rows of SmolLM2's vocabulary, products are as fast as with 170, and the steps that follow
are faster.
"""


class DenseLayers(Protocol):
    """Source of a dense model's layers, embedding and output head."""

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""

    @property
    def device(self) -> torch.device:
        """Return the compute device, on which the weights are."""

    @property
    def logit_rows(self) -> int:
        """Return the number of rows whose logits are computed at once."""

    @property
    def memory(self) -> TensorMemory:
        """Return the storage for hidden states of many sequences."""

    @property
    def ranks(self) -> Ranks:
        """Return the ranks that divide the sequences among them."""

    def weights(self, layer: int) -> LayerWeights:
        """Return a layer's weights on the device, in the compute dtype."""

    def settings(self, layer: int) -> LayerSettings:
        """Return a layer's settings: everything that its forward pass needs besides weights."""

    def rotary(self, layer: int, length: int) -> Rotary:
        """Return the rotary tables of a layer for `length` positions."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input of the first layer, (…, hidden_size)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits for rows of the last layer's output, (rows, vocabulary), float32."""


class DenseLayerReader:
    """`DenseLayers` of a checkpoint, read lazily."""

    def __init__(
        self,
        reader: CheckpointReader,
        device: torch.device,
        dtype: torch.dtype,
        memory: TensorMemory | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.memory, self.ranks = memory or HostMemory(), ranks
        self._reader = reader
        self._canonical = reader.family.canonical_settings(reader.config)
        self._device = device
        self._dtype = dtype
        self._prefetch = LayerPrefetch(reader, self._stored_names, self.num_layers)

    @property
    def device(self) -> torch.device:
        """Return the compute device, on which the weights are."""
        return self._device

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return int(self._canonical["num_hidden_layers"])

    @property
    def logit_rows(self) -> int:
        """Return the number of rows whose logits are computed at once."""
        return max(LOGITS_AT_ONCE // int(self._reader.config.vocab_size), 1)

    def weights(self, layer: int) -> LayerWeights:
        """Return a layer's weights, checked to be finite, on the device, in the compute dtype.

        The next layer in the direction of the pass is read from disk meanwhile.

        Raises:
            NonFiniteWeightError: naming the tensor, if a weight is NaN or infinite.
            BrokenCheckpointError: if a file cannot be read or was changed.
        """
        family, reader = self._reader.family, self._reader
        self._prefetch.finish(layer)
        stored = {name: reader.tensor(name) for name in self._stored_names(layer)}
        if self._device.type == "cpu":
            _require_finite(stored)
        prefix = family.layer_prefix(layer)
        tensors = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
        named = family.canonical_layer(reader.config, layer, tensors)
        groups = self._canonical["num_key_value_heads"]
        weights = canonical.layer_weights(named, groups, self._device, self._dtype)
        if self._device.type != "cpu" and not _is_finite(layer, weights):
            _require_finite(stored)
        self._prefetch.begin_after(layer)
        return weights

    def _stored_names(self, layer: int) -> list[str]:
        """Return the names of a layer's tensors in the checkpoint.

        Older checkpoints also hold masks and frequencies, which no model reads.
        """
        family = self._reader.family
        prefix = family.layer_prefix(layer)
        return [prefix + name for name in family.stored_shapes(self._reader.config, layer)]

    def settings(self, layer: int) -> LayerSettings:
        """Return a layer's settings: everything that its forward pass needs besides weights."""
        return canonical.layer_settings(self._canonical, layer)

    def rotary(self, layer: int, length: int) -> Rotary:
        """Return the rotary tables of a layer for `length` positions."""
        return canonical.rotary_tables(self._canonical, layer, length, self._device)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input of the first layer, (…, hidden_size), on the CPU."""
        names = self._reader.family.outer_names(self._reader.config)
        table = self._reader.tensor(names[canonical.EMBEDDING])
        rows = table[tokens.cpu()].to(self._dtype)
        if canonical.POSITIONS not in names:
            return canonical.embedded(self._canonical, rows)
        positions = self._reader.tensor(names[canonical.POSITIONS])
        return canonical.embedded(self._canonical, rows, positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits for rows of the last layer's output, (rows, vocabulary), float32."""
        norm, weight, bias = self._head
        normed = decoder_layer.apply_norm(hidden.to(self._device), norm, self.settings(0))
        logits = F.linear(normed, weight, bias).float()
        scale = float(self._canonical["logit_scale"])
        if scale != 1.0:
            logits = logits * scale
        cap = self._canonical["final_logit_softcapping"]
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @functools.cached_property
    def _head(self) -> tuple[Norm, Tensor, Tensor | None]:
        """Return the final norm and the weight and bias of the output head."""
        # Gradients flow through the cached head even if it is first used in inference mode, so it
        # must not be made of inference tensors.
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
        assert norm is not None  # the reader has checked that every checkpoint has both
        assert weight is not None
        return Norm(weight=norm, bias=at("model.norm.bias")), weight, at("lm_head.bias")


def _require_finite(stored: Mapping[str, Tensor]) -> None:
    """Raise if a stored tensor has a value that is not finite, naming it."""
    for name, tensor in stored.items():
        check_finite(name, tensor)


def _is_finite(layer: int, weights: LayerWeights) -> bool:
    """Report whether all weights are finite; checked on their device, which is waited for once."""
    flags = [
        torch.isfinite(torch.stack(tensor.aminmax())).all()
        for tensor in canonical.named_tensors(layer, weights).values()
    ]
    return bool(torch.stack(flags).all())


def divergences(
    layers: DenseLayers,
    dense: Tensor,
    compressed: Sequence[Tensor] | Tensor,
    *,
    prefix_length: int = 0,
    stride: int = 1,
) -> Tensor:
    """Return KL(dense ‖ compressed) of the predictions at positions that predict text.

    The dense model's predictions are computed once for all compressed models.

    Args:
        layers: the model whose output head is used for all.
        dense: output of the last layer, (sequences, length, hidden_size).
        compressed: that of each compressed model, shape of `dense`.
        prefix_length: positions of the prefix at the beginning of every sequence.
        stride: distance between the positions; 1 takes all.

    Returns:
        (models, sequences, positions), float64, at least 0, in nats, on the CPU: float32 rounds
        small divergences to slightly negative values. With stride 1 there are
        `length - max(prefix_length, 1) + 1` positions.

    Raises:
        NumericalError: if a prediction is not finite.
    """
    chosen = slice(max(prefix_length, 1) - 1, None, stride)
    positions = len(range(dense.shape[1])[chosen])
    expected = dense[:, chosen].flatten(0, 1)
    predicted = [hidden[:, chosen].flatten(0, 1) for hidden in compressed]
    out = torch.empty(len(predicted), len(expected), dtype=torch.float64)
    for start in range(0, len(expected), layers.logit_rows):
        rows = slice(start, start + layers.logit_rows)
        log_dense = torch.log_softmax(layers.logits(expected[rows]), -1)
        probabilities = log_dense.exp()
        difference = torch.empty_like(log_dense)
        for model, hidden in enumerate(predicted):
            torch.log_softmax(layers.logits(hidden[rows]), -1, out=difference)
            torch.sub(log_dense, difference, out=difference).mul_(probabilities)
            out[model, rows] = difference.sum(-1).double().cpu()
    require_finite(out, "the divergence of a compressed model")
    return out.clamp_min_(0.0).view(len(predicted), len(dense), positions)


def mean_loss(
    layers: DenseLayers, hidden: Tensor, tokens: Tensor, *, prefix_length: int = 0
) -> float:
    """Return the mean next-token loss in nats from the last layer's output.

    Tokens of the prefix are not scored, as in `evaluation.perplexity`.

    Args:
        layers: the model whose output head is used.
        hidden: output of the last layer, (sequences, length, hidden_size).
        tokens: token ids, (sequences, length).
        prefix_length: positions of the prefix at the beginning of every sequence.

    Raises:
        NumericalError: if a prediction is not finite.
    """
    first = max(prefix_length, 1)
    rows, targets = hidden[:, first - 1 : -1].flatten(0, 1), tokens[:, first:].flatten()
    total = 0.0
    for start in range(0, len(targets), layers.logit_rows):
        part = slice(start, start + layers.logit_rows)
        logits = layers.logits(rows[part])
        total += float(F.cross_entropy(logits, targets[part].to(logits.device), reduction="sum"))
    if not math.isfinite(total):
        raise NumericalError("the loss of a model is NaN or infinite", module="output head")
    return total / len(targets)
