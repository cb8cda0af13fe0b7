"""Forward pass of a dense layer whose units are multiplied by masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Rotary


class Masks(Protocol):
    """Factors on the units of one layer."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return all masks."""

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Return other masks in the same order."""

    def forward(
        self, hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
    ) -> Tensor:
        """Return the layer's output with masks, (batch, sequence, hidden_size).

        Args:
            hidden: hidden states before the layer, (batch, sequence, hidden_size).
            weights: of the dense layer.
            settings: of the layer.
            rotary: tables of exactly `sequence` positions.
        """


@dataclass(frozen=True, kw_only=True)
class LayerMasks:
    """Masks of SPP: on rotary pairs, value dimensions and neurons."""

    pairs: Tensor
    """On queries and on keys after RoPE, (num_key_value_heads, rotary_pairs)."""
    values: Tensor
    """On the values, (num_key_value_heads, head_dim)."""
    neurons: Tensor
    """On the inner activations of the MLP, (intermediate_size,)."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return all masks."""
        return self.pairs, self.values, self.neurons

    def with_tensors(self, tensors: Sequence[Tensor]) -> LayerMasks:
        """Return other masks in the same order."""
        pairs, values, neurons = tensors
        return LayerMasks(pairs=pairs, values=values, neurons=neurons)

    def forward(
        self, hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
    ) -> Tensor:
        """Return the layer's output with masks, (batch, sequence, hidden_size)."""
        inner = self._attention(hidden, weights, settings, rotary)
        attended = decoder_layer.added(
            inner, weights.attention_output, weights.attention_output_norm, settings
        )
        between = hidden + attended
        source = hidden if settings.parallel_block else between
        neurons = decoder_layer.mlp_inner(source, weights, settings)
        neurons = neurons * self.neurons.to(neurons.dtype)
        return between + decoder_layer.added(
            neurons, weights.mlp_output, weights.mlp_output_norm, settings
        )

    def _attention(
        self, hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
    ) -> Tensor:
        """Return the attention's inner activations."""
        normed = decoder_layer.attention_inputs(hidden, weights, settings)
        query, key = decoder_layer.rotated_queries_and_keys(normed, weights, settings, rotary)
        value = decoder_layer.values(normed, weights)
        both = self.pairs.repeat(1, 2).unsqueeze(1).to(query.dtype)
        group = query.shape[1] // key.shape[1]
        return decoder_layer.attend(
            query * both.repeat_interleave(group, 0),
            key * both,
            value * self.values.unsqueeze(1).to(value.dtype),
            settings,
        )


@dataclass(frozen=True, kw_only=True)
class ResidualPartMasks:
    """Masks of DISP-LLM: on what modules read and write of the residual stream, and on neurons."""

    attention_reads: Tensor
    """On the normed inputs of the attention, (hidden_size,)."""
    attention_writes: Tensor
    """On the attention's output before a norm, (hidden_size,)."""
    mlp_reads: Tensor
    """On the normed inputs of the MLP, (hidden_size,)."""
    mlp_writes: Tensor
    """On the MLP's output before a norm, (hidden_size,)."""
    neurons: Tensor
    """On the inner activations of the MLP, (intermediate_size,)."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return all masks."""
        return (
            *(self.attention_reads, self.attention_writes),
            *(self.mlp_reads, self.mlp_writes, self.neurons),
        )

    def with_tensors(self, tensors: Sequence[Tensor]) -> ResidualPartMasks:
        """Return other masks in the same order."""
        attention_reads, attention_writes, mlp_reads, mlp_writes, neurons = tensors
        return ResidualPartMasks(
            attention_reads=attention_reads,
            attention_writes=attention_writes,
            mlp_reads=mlp_reads,
            mlp_writes=mlp_writes,
            neurons=neurons,
        )

    def forward(
        self, hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
    ) -> Tensor:
        """Return the layer's output with masks, (batch, sequence, hidden_size)."""
        normed = decoder_layer.attention_inputs(hidden, weights, settings)
        normed = normed * self.attention_reads.to(normed.dtype)
        inner = decoder_layer.attention_inner(normed, weights, settings, rotary)
        update = weights.attention_output(inner)
        update = update * self.attention_writes.to(update.dtype)
        update = decoder_layer.apply_norm(update, weights.attention_output_norm, settings)
        between = hidden + decoder_layer.scaled(update, settings)
        source = hidden if settings.parallel_block else between
        normed = decoder_layer.mlp_inputs(source, weights, settings)
        normed = normed * self.mlp_reads.to(normed.dtype)
        neurons = decoder_layer.mlp_activations(normed, weights, settings)
        update = weights.mlp_output(neurons * self.neurons.to(neurons.dtype))
        update = update * self.mlp_writes.to(update.dtype)
        update = decoder_layer.apply_norm(update, weights.mlp_output_norm, settings)
        return between + decoder_layer.scaled(update, settings)
