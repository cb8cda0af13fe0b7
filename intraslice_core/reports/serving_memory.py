"""Memory that a model needs to be served: its weights and the KV cache of full contexts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from intraslice_core.plan import LayerPlan
from intraslice_core.reports.schema import CompressionReport

CONTEXT_TOKENS = 4096
"""Default context length in tokens."""


@dataclass(frozen=True, kw_only=True)
class ServingMemory:
    """Bytes of both models for a batch of full contexts."""

    dense: int
    compressed: int
    context_tokens: int
    batch_size: int

    @property
    def ratio(self) -> float:
        """Size ratio, compressed / dense."""
        return self.compressed / self.dense


def serving_memory(
    report: CompressionReport, context_tokens: int = CONTEXT_TOKENS, batch_size: int = 1
) -> ServingMemory:
    """Return the size of weights and KV cache of both models, in the dtype of the dense weights.

    The caches have the sizes of transformers: each layer's own. Activations and the runtime itself
    come on top.
    """
    item_bytes = max(1, round(report.bytes_before / report.params_before))
    tokens = context_tokens * batch_size
    dense = _cache_width(report.geometry.dense_plan().layers) * item_bytes * tokens
    compressed = _cache_width(report.plan.layers) * item_bytes * tokens
    return ServingMemory(
        dense=report.bytes_before + dense,
        compressed=report.bytes_after + compressed,
        context_tokens=context_tokens,
        batch_size=batch_size,
    )


def _cache_width(layers: Iterable[LayerPlan]) -> int:
    """Return the numbers of a token's keys and values in all layers."""
    return sum(
        layer.num_key_value_heads * (layer.qk_head_dim + layer.v_head_dim) for layer in layers
    )
