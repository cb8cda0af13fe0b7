"""Pass of hidden states through one dense layer, with the moments of its inner activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from intraslice_core import decoder_layer, linalg
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.compensation import OutputSpace, attention_space, mlp_space
from intraslice_core.errors import NumericalError
from intraslice_core.plan import Module
from intraslice_core.ranks import Ranks
from intraslice_core.statistics import prefix_scale, scaled, second_moment_sum

TOKENS_AT_ONCE = 2048
"""Tokens in one batch on a CPU, at least one sequence.

More do not fit its caches, and with fewer the sums of moments cost as much as the products.
"""


def sequences_at_once(batch_size: int, length: int, device: torch.device) -> int:
    """Return the number of sequences in one batch: `batch_size`, fewer on a CPU if they are long.

    Args:
        batch_size: largest number of sequences.
        length: positions of a sequence.
        device: device of the layer.
    """
    if device.type != "cpu":
        return batch_size
    return min(batch_size, max(TOKENS_AT_ONCE // length, 1))


def embedded(layers: DenseLayers, tokens: Tensor) -> Tensor:
    """Return the hidden states before the first layer, embedded a sequence at a time.

    Args:
        layers: the dense model.
        tokens: calibration, (samples, length), int64.

    Returns:
        (samples, length, hidden_size), in the model's dtype.
    """
    first = layers.embed(tokens[:1])
    hidden = layers.memory.empty((len(tokens), *first.shape[1:]), first.dtype)
    for row, sequence in enumerate(tokens):
        hidden[row] = layers.embed(sequence)
    return hidden


@dataclass(frozen=True, kw_only=True)
class InnerMoments:
    """Second moments `E[z zᵀ]` of the inner activations of both modules of a dense layer.

    A bias of the output projection is a last entry of `z` that is constantly 1. Positions of the
    prefix are scaled (docs/method.md, section 2).
    """

    attention: Tensor
    """(num_attention_heads · head_dim [+ 1], same), float64."""
    mlp: Tensor
    """(intermediate_size [+ 1], same), float64."""


class DensePass:
    """Pass of hidden states through one dense layer, with the moments of both modules."""

    def __init__(self, layers: DenseLayers, layer: int, length: int, prefix_length: int) -> None:
        self._prefix_length = prefix_length
        self.weights = layers.weights(layer)
        self._settings = layers.settings(layer)
        self._rotary = layers.rotary(layer, length)
        self._attention_space = attention_space(self.weights, self._settings)
        self._mlp_space = mlp_space(self.weights, self._settings)
        self.device = self.weights.up.weight.device
        self._ranks = layers.ranks
        self._heads = _MeanOuter("attention", self._attention_space)
        self._neurons = _MeanOuter("mlp", self._mlp_space)

    def advance(self, hidden: Tensor) -> Tensor:
        """Add one batch to the moments and return the hidden states after the layer.

        Args:
            hidden: before the layer, (batch, sequence, hidden_size), on the layer's device.
        """
        return self._advanced(hidden, records=True)

    def replay(self, hidden: Tensor) -> Tensor:
        """Return the hidden states after the layer with the bits of `advance`; add nothing.

        Args:
            hidden: before the layer, (batch, sequence, hidden_size), on the layer's device.
        """
        return self._advanced(hidden, records=False)

    def _advanced(self, hidden: Tensor, *, records: bool) -> Tensor:
        weights, settings = self.weights, self._settings
        normed = decoder_layer.attention_inputs(hidden, weights, settings)
        inner = self._attend(normed, records=records)
        observation = self._attention_space.observe(inner, inner)
        between = hidden + observation.added
        if records:
            self._heads.add(scaled(observation.inner, prefix_scale(between, self._prefix_length)))
        inner = decoder_layer.mlp_inner(
            hidden if settings.parallel_block else between, weights, settings
        )
        observation = self._mlp_space.observe(inner, inner)
        after = between + observation.added
        if records:
            self._neurons.add(scaled(observation.inner, prefix_scale(after, self._prefix_length)))
        return after

    def _attend(self, normed: Tensor, *, records: bool) -> Tensor:  # noqa: ARG002
        """Return the attention's inner activations `o`; subclasses may record what they need."""
        return decoder_layer.attention_inner(normed, self.weights, self._settings, self._rotary)

    def join(self, to: int | None = None) -> None:
        """Add up the moments of all ranks, once their batches have passed.

        Args:
            to: rank that gets them; None for all.
        """
        self._heads.join(self._ranks, to)
        self._neurons.join(self._ranks, to)

    @cached_property
    def moments(self) -> InnerMoments:
        """Moments of both modules, once all batches have passed; of this rank before `join`.

        Raises:
            NumericalError: if no tokens were added or an activation was not finite.
        """
        return InnerMoments(attention=self._heads.mean(), mlp=self._neurons.mean())


class _MeanOuter:
    """Accumulator of `E[z zᵀ]` of a module's inner activations over tokens."""

    def __init__(self, module: Module, space: OutputSpace) -> None:
        self._module, self._space = module, space
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, inner: Tensor) -> None:
        """Add inner activations, (…, width)."""
        flat = inner.flatten(0, -2)
        products = second_moment_sum(flat, flat)
        if self._sum is None:
            self._sum = products.to(linalg.WORKING_DTYPE)
        else:
            self._sum.add_(products)
        self._tokens += flat.shape[0]

    def join(self, ranks: Ranks, to: int | None) -> None:
        """Add up the sums of all ranks, some of which may have seen no tokens."""
        if ranks.is_alone:
            return
        if self._sum is None:
            weight, bias = self._space.output.weight, self._space.output.bias
            width = weight.shape[1] + (bias is not None)
            self._sum = torch.zeros(width, width, dtype=linalg.WORKING_DTYPE, device=weight.device)
        ranks.sum_([self._sum], to=to)
        self._tokens = int(ranks.totals([self._tokens])[0])

    def mean(self) -> Tensor:
        """Return the mean, (width, width), float64, and clear the sum.

        Raises:
            NumericalError: if no tokens were added or an activation was not finite.
        """
        if self._sum is None:
            raise NumericalError("no tokens were seen", module=self._module)
        mean, self._sum = self._sum.div_(self._tokens), None
        if not linalg.is_finite(mean):
            raise NumericalError("an inner activation is NaN or infinite", module=self._module)
        return mean
